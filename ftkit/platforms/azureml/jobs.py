"""Jobs: submit one, follow it to its end, fetch the small files that it wrote; Ctrl-C leaves it running."""

from __future__ import annotations

import json
import re
import secrets
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import TextIOBase
from pathlib import Path
from typing import Any

from azure.ai.ml.exceptions import JobException

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import Interrupted, StageError
from ftkit.files import written_aside
from ftkit.platforms import Running, Say
from ftkit.platforms.azureml import environments
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.store import Datastore
from ftkit.platforms.azureml.submission import OUTPUT, TAG, job, snapshot, write_given
from ftkit.platforms.azureml.work import Work
from ftkit.platforms.azureml.workspace import Workspace

STATE = "job.json"
GIVEN = "given"
FOLDER = "azureml"
POLL_S = 2.0
ENDED = ("Completed", "Failed", "Canceled", "NotResponding")
FRAME = re.compile(r"^(RunId: |Web View: |Execution Summary$|=+$|Streaming [\w/.-]+$|$)")
"""Lines that the SDK puts around a job's own."""


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    Attributes:
        name: in the workspace.
        stages: what it runs.
        fingerprint: tells apart what it makes.
        store: address that its output is mounted from.
        status: as the service gave it last.
        reason: of a failure, in the service's words.
    """

    name: str
    stages: tuple[str, ...]
    fingerprint: str
    store: str
    status: str = "Queued"
    reason: str = ""


def run(workspace: Workspace, config: Config, run_folder: Path, work: Work, say: Say, show: Say) -> Job:
    """Submit a job, or take up the one that is already under way for the same work; follow it and fetch its records.

    Raises:
        StageError: it failed; says in which line of its log.
        Interrupted: Ctrl-C; the job goes on.
    """
    found = to_follow(workspace, config, run_folder, work)
    if found:
        say(f"job {found.name} is under way: following it")
    else:
        found = _submit(workspace, config, run_folder, work, say)
    ended = follow_to_end(workspace, run_folder, found, show)
    place = f"azureml://jobs/{ended.name}/outputs/{OUTPUT}/paths/{config.run.name}"
    fetched = fetch(workspace, config.run.name, run_folder, ended, place)
    check_completed(workspace, ended, run_folder)
    if missing := [stage for stage in work.stages if stage not in fetched]:
        raise StageError(f"job {ended.name} left no record of {', '.join(missing)}", where=studio(workspace, ended))
    return ended


def follow_to_end(workspace: Workspace, run_folder: Path, of: Job, show: Say) -> Job:
    """Follow a job and remember how it ended."""
    ended = _follow(workspace, of, show)
    remember(run_folder, ended)
    return ended


def fetch(workspace: Workspace, name: str, run_folder: Path, of: Job, place: str) -> list[str]:
    """Bring records, curves and tables of a run in a job here; records say where the large files lie.

    Args:
        name: of the run.
        run_folder: where they go.
        of: the job.
        place: address of the run's folder that records get.

    Returns:
        The stages whose records came.
    """
    came: list[str] = []
    for path, content in Datastore(workspace).small_files(f"{of.store}/{name}", of.stages):
        if path.name == "record.json":
            record = records.Record(**json.loads(content))
            kept = {**record.result, "job": of.name, "store": f"{of.store}/{name}"}
            records.write(run_folder, replace(record, place=place, result=kept))
            came.append(record.stage)
            continue
        with written_aside(run_folder / path) as aside:
            aside.write_bytes(content)
    return came


def running(workspace: Workspace, run_folder: Path) -> list[Running]:
    """The job of this run that is under way."""
    remembered = _remembered(run_folder)
    if remembered is None:
        return []
    found = _look(workspace, remembered.name)
    if found is None or found.status in ENDED:
        return []

    def cancel() -> None:
        with workspace.asking("cancel job", found.name):
            workspace.client.jobs.begin_cancel(found.name).result()

    return [Running(f"job {found.name}: {', '.join(found.stages)}, {found.status}", None, cancel)]


def to_follow(workspace: Workspace, config: Config, run_folder: Path, work: Work) -> Job | None:
    """The job that ``attach`` names, or else this run's own if it is under way and does the same."""
    if config.attach:
        found = _look(workspace, config.attach)
        if found is None or not found.stages:
            raise StageError(f"there is no job {config.attach} of ftkit's", where=workspace.name)
        if found.stages != tuple(work.stages):
            raise StageError(
                f"job {found.name} runs {','.join(found.stages)}", cure=f"stage={','.join(found.stages)} attach=…"
            )
        return found
    remembered = _remembered(run_folder)
    if remembered is None or remembered.fingerprint != work.fingerprint or remembered.status in ENDED:
        return None
    found = _look(workspace, remembered.name)
    return found if found and found.status not in ENDED else None


def _submit(workspace: Workspace, config: Config, run_folder: Path, work: Work, say: Say) -> Job:
    config = with_vault(workspace, config)
    environment = environments.ensure(workspace, "train", config.environment.train, say)
    store, again = _output_store(workspace, config, run_folder, work)
    given = run_folder / FOLDER / GIVEN
    write_given(config, work, given)
    with snapshot(config) as code, workspace.sending("submit a job that runs", ", ".join(work.stages)):
        wanted = job(config, work, code=code, given=given, environment=environment, store=store)
        made = job_of(workspace.client.jobs.create_or_update(wanted))
    remember(run_folder, made)
    nodes = config.compute.nodes
    where = config.compute.cluster or config.compute.instance_type
    say(
        f"job {made.name} on {nodes} × {where}{', spot' if config.compute.spot else ''}"
        f"{', goes on from where the last one ended' if again else ''}"
    )
    say(studio(workspace, made))
    return made


def with_vault(workspace: Workspace, config: Config) -> Config:
    """The configuration with the name of the workspace's own key vault, where none is given and one is needed."""
    if config.secrets.hf_token is None or config.secrets.key_vault:
        return config
    vault = str(workspace.described.key_vault).rpartition("/")[2]
    return config.model_copy(update={"secrets": config.secrets.model_copy(update={"key_vault": vault})})


def _output_store(workspace: Workspace, config: Config, run_folder: Path, work: Work) -> tuple[str, bool]:
    """Where the output lies. Work that an earlier job began is taken up in its place; else the place is new, because
    a registered model may point into the old one."""
    last = _remembered(run_folder)
    if last and last.fingerprint == work.fingerprint and last.status != "Completed":
        return last.store, True
    return new_store(workspace, config), False


def new_store(workspace: Workspace, config: Config) -> str:
    """Address for a job's output where nothing lies yet."""
    return Datastore(workspace).address(f"ftkit/{config.run.name}-{secrets.token_hex(4)}")


def _follow(workspace: Workspace, of: Job, show: Say) -> Job:
    """Print a job's log as it grows; returns how the job ended, with the service's reason if it failed."""
    lines, reason = _Lines(show), ""
    try:
        with workspace.asking("follow job", of.name), redirect_stdout(lines):
            try:
                workspace.client.jobs.stream(of.name)
            except JobException as error:
                if isinstance(error.__cause__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error
                reason = _reason(str(error))
    except KeyboardInterrupt as error:
        stages = ",".join(of.stages)
        raise Interrupted(
            f"detached; job {of.name} goes on, at its full price\n"
            f"  follow  the same command, or stage={stages} attach={of.name} elsewhere\n"
            "  cancel  stage=teardown"
        ) from error
    while (ended := _look(workspace, of.name)) and ended.status not in ENDED:
        time.sleep(POLL_S)  # the log ends before the job does, when it is being cancelled
    return replace(ended or of, reason=reason)


def check_completed(workspace: Workspace, of: Job, run_folder: Path) -> None:
    """Raises StageError: the job failed, in the words of the process that failed if it left any, or was cancelled."""
    names = ", ".join(of.stages)
    if of.status == "Completed":
        return
    if of.status == "Canceled":
        raise StageError(
            f"job {of.name} ({names}) was cancelled, or ran into compute.timeout_hours",
            where=studio(workspace, of),
            cure="the same command submits it again and goes on from its last checkpoint",
        )
    left = (records.failure(run_folder, stage) for stage in of.stages)
    own = next((failure for failure in left if failure and failure.job == of.name), records.Failure(of.reason))
    raise StageError(
        f"job {of.name} ({names}) failed: {own.what or 'the service gives no reason'}",
        where=studio(workspace, of),
        cure=own.cure or "mend what it says; the same command submits it again and goes on from its last checkpoint",
    )


class _Lines(TextIOBase):
    """Takes what the SDK streams and prints a job's own lines, one by one."""

    def __init__(self, show: Say):
        self._show, self._begun = show, ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            if not FRAME.match(line.rstrip()):
                self._show(line.rstrip())
        return len(text)


def _reason(text: str) -> str:
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', text)
    return json.loads(f'"{found[1]}"') if found else text.splitlines()[0]


def _look(workspace: Workspace, name: str) -> Job | None:
    try:
        with workspace.asking("look at job", name):
            return job_of(workspace.client.jobs.get(name))
    except StageError as error:
        if is_missing(error.__cause__):
            return None
        raise


def job_of(found: Any) -> Job:
    kept = {key.removeprefix(TAG): value for key, value in (found.tags or {}).items() if key.startswith(TAG)}
    stages = tuple(kept.get("stages", "").split(",")) if kept.get("stages") else ()
    status = str(getattr(found.status, "value", found.status))
    return Job(found.name, stages, kept.get("fingerprint", ""), kept.get("store", ""), status)


def studio(workspace: Workspace, of: Job) -> str:
    return f"https://ml.azure.com/runs/{of.name}?wsid={workspace.described.id}"


def remember(run_folder: Path, of: Job) -> None:
    with written_aside(run_folder / FOLDER / STATE) as aside:
        aside.write_text(json.dumps(asdict(of), indent=2) + "\n", encoding="utf-8")


def _remembered(run_folder: Path) -> Job | None:
    try:
        found = json.loads((run_folder / FOLDER / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Job(**{**found, "stages": tuple(found["stages"])})
