"""Jobs that a workspace has: found by the work that they do, by ``attach`` or by the tag of a run, from any machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms import attempts
from ftkit.platforms.attempts import Place
from ftkit.platforms.azureml import changes
from ftkit.platforms.azureml.changes import Change, State
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.ownership import OWNER, made_by_ftkit, run_key
from ftkit.platforms.azureml.submission import TAG
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import JobRequest, Running

FOLDER = "azureml"


@dataclass(frozen=True, kw_only=True)
class Job(attempts.Job):
    """A job of the workspace.

    Attributes:
        fingerprint: tells apart what it makes.
        store: address that its output is mounted from.
        owner: the identity that submitted it.
    """

    fingerprint: str
    store: str
    owner: str = ""


def find(workspace: Workspace, config: Config, run_folder: Path, request: JobRequest) -> Job | Place[Job]:
    """The job to follow or fetch: that of ``attach``, or the one that does this work; else where the next goes."""
    if config.attach:
        return _attached(workspace, config.attach, request)
    last = attempts.remembered(run_folder / FOLDER, Job)
    return attempts.find(config, request.fingerprint, lambda name: look(workspace, name), last)


def _attached(workspace: Workspace, name: str, request: JobRequest) -> Job:
    found = look(workspace, name)
    if found is None or not found.stages:
        raise StageError(f"there is no job {name} of ftkit's", where=workspace.name)
    if found.stages != tuple(request.stages):
        raise StageError(
            f"job {found.name} runs {','.join(found.stages)}", cure=f"stage={','.join(found.stages)} attach={name}"
        )
    return found


def running(workspace: Workspace, run: str, run_folder: Path) -> list[Running]:
    """The jobs of a run that are under way, from whatever machine; others' are without a way to stop them."""
    return [_running(workspace, found) for found in under_way(workspace, run, run_folder)]


def under_way(workspace: Workspace, run: str, run_folder: Path) -> list[Job]:
    """The jobs of a run that have not ended: those that bear its tag, and the one that is remembered here."""
    with workspace.asking("list the jobs of run", run):
        listed: list[Any] = [found for found in workspace.client.jobs.list(tag=run_key(run)) if found is not None]
    by_name = {found.name: job_of(found) for found in listed if made_by_ftkit(found.tags or {})}
    last = attempts.remembered(run_folder / FOLDER, Job)
    if last and last.name not in by_name and last.status not in records.ENDED and (found := look(workspace, last.name)):
        by_name[found.name] = found
    return [found for found in by_name.values() if found.status not in records.ENDED]


def _running(workspace: Workspace, found: Job) -> Running:
    def state() -> State:
        present = look(workspace, found.name)
        if present is None or present.status in records.ENDED:
            return State.DONE
        return State.UNDER_WAY if present.status == "CancelRequested" else State.NOT_BEGUN

    def cancel() -> None:
        begin = lambda: workspace.client.jobs.begin_cancel(found.name)  # noqa: E731
        try:
            changes.make(workspace, Change(("cancel the job", found.name), begin, state), lambda line: None)
        except StageError:
            if state() is not State.DONE:  # it may have ended by itself meanwhile
                raise

    own = found.owner == workspace.owner
    by = "" if own else f", submitted by {found.owner or 'another identity'}"
    return Running(f"job {found.name}: {', '.join(found.stages)}, {found.status}{by}", None, cancel if own else None)


def look(workspace: Workspace, name: str) -> Job | None:
    """The job of a name, if there is one."""
    try:
        with workspace.asking("look at job", name):
            return job_of(workspace.client.jobs.get(name))
    except StageError as error:
        if is_missing(error.__cause__):
            return None
        raise


def job_of(found: Any) -> Job:
    tags = found.tags or {}
    kept = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    stages = tuple(kept.get("stages", "").split(",")) if kept.get("stages") else ()
    status = str(getattr(found.status, "value", found.status))
    owner = tags.get(OWNER, "")
    return Job(
        name=found.name,
        stages=stages,
        status=status,
        fingerprint=kept.get("fingerprint", ""),
        store=kept.get("store", ""),
        owner=owner,
    )


def studio(workspace: Workspace, of: Job) -> str:
    """The job's page in Azure ML's studio, in the tenant of this credential."""
    tenant = f"&tid={workspace.tenant}" if workspace.tenant else ""
    return f"https://ml.azure.com/runs/{of.name}?wsid={workspace.described.id}{tenant}"
