"""Jobs: submit one, follow it to its end, fetch the small files that it wrote; Ctrl-C leaves it running."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import TextIOBase
from pathlib import Path, PurePosixPath

from azure.ai.ml.exceptions import JobException

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import Interrupted, StageError
from ftkit.files import is_below, written_aside
from ftkit.platforms import attempts
from ftkit.platforms.attempts import Place
from ftkit.platforms.azureml import changes, environments
from ftkit.platforms.azureml.datastore import Datastore
from ftkit.platforms.azureml.known_jobs import FOLDER, Job, find, job_of, look, studio
from ftkit.platforms.azureml.submission import (
    OUTPUT,
    job,
    snapshot,
    store_name,
    whole_model,
    write_given,
)
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import JobRequest, Say

GIVEN = "given"
POLL_S = 2.0
END_LIMIT_S = 1800.0
"""How long a job may take to end once its log has."""
QUEUED = ("NotStarted", "Queued")
QUEUE_POLL_S, QUEUE_LINE_S = 5.0, 600.0
ASKED_FOR = "Asked for"
"""Status of a job whose request has been sent, and not been answered yet."""
FRAME = re.compile(r"^(RunId: |Web View: |Execution Summary$|=+$|Streaming [\w/.-]+$|$)")
"""Lines that the SDK puts around a job's own."""


class StillQueued(StageError):
    """A job has no machine yet, and costs nothing."""


def run(workspace: Workspace, config: Config, run_folder: Path, request: JobRequest, say: Say, show: Say) -> Job:
    """Submit a job, or take up the one that is already under way for the same work; follow it and fetch its records.

    Raises:
        StageError: it failed; says in which line of its log.
        Interrupted: Ctrl-C; the job goes on.
    """
    found = find(workspace, config, run_folder, request)
    if isinstance(found, Job):
        said = "has completed: fetching what it wrote" if found.status == "Completed" else "is under way: following it"
        say(f"job {found.name} {said}{_of_another(workspace, found)}")
    else:
        found = _submit(workspace, config, run_folder, request, found, say)
    ended = follow_to_end(workspace, config, run_folder, found, say, show)
    place = f"azureml://jobs/{ended.name}/outputs/{OUTPUT}/paths/{config.run.name}"
    fetched = fetch(workspace, config.run.name, run_folder, ended, place)
    check_completed(workspace, ended, run_folder)
    if missing := [stage for stage in ended.stages if stage not in fetched]:
        raise StageError(
            f"job {ended.name} has completed and left no record of {', '.join(missing)}",
            where=f"{studio(workspace, ended)}, {ended.store}",
            cure="has its output been deleted? force=true runs it again",
        )
    attempts.remember(run_folder / FOLDER, replace(ended, fetched=True))
    return ended


def _of_another(workspace: Workspace, found: Job) -> str:
    return f" (submitted by {found.owner})" if found.owner != workspace.owner else ""


def follow_to_end(workspace: Workspace, config: Config, run_folder: Path, of: Job, say: Say, show: Say) -> Job:
    """Follow a job and remember how it ended."""
    attempts.remember(run_folder / FOLDER, of)
    ended = of if of.status in records.ENDED else _follow(workspace, of, config.azure_compute.queue_hours, say, show)
    attempts.remember(run_folder / FOLDER, ended)
    return ended


def fetch(workspace: Workspace, name: str, run_folder: Path, of: Job, place: str) -> list[str]:
    """Bring records, curves and tables of a run in a job here; records say where the large files lie.

    Records are written last, that of the first stage after all others: what was cut off is fetched again, whole.

    Args:
        name: of the run.
        run_folder: where they go.
        of: the job.
        place: address of the run's folder that records get.

    Returns:
        The stages whose records came.

    Raises:
        StageError: the store cannot be read, or holds what is no record.
    """
    found: list[records.Record] = []
    try:
        for path, content in Datastore(workspace).small_files(f"{of.store}/{name}", of.stages):
            if not is_below(str(path)):
                raise StageError(f"job {of.name} has left a file that would leave its folder", where=str(path))
            if path.name == "record.json":
                found.append(_record(path, content, of))
                continue
            with written_aside(run_folder / path) as aside:
                aside.write_bytes(content)
    except StageError as error:
        if of.status != "Completed":
            raise
        raise StageError(
            f"job {of.name} has completed, and what it wrote could not be fetched: {error.what}",
            where=error.where,
            cure=f"{error.cure + '; ' if error.cure else ''}the same command fetches it; nothing is trained again",
        ) from error
    kept = {"job": of.name, "store": f"{of.store}/{name}"}
    for record in sorted(found, key=lambda record: of.stages.index(record.stage), reverse=True):
        records.write(run_folder, replace(record, place=place, result={**record.result, **kept}))
    return [record.stage for record in found]


def _record(path: PurePosixPath, content: bytes, of: Job) -> records.Record:
    try:
        return records.parse(content, "/".join(path.parts[:-1]))
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} of job {of.name} is no record of that stage: {error}", where=of.store) from error


def _submit(
    workspace: Workspace, config: Config, run_folder: Path, request: JobRequest, to: Place[Job], say: Say
) -> Job:
    config = with_vault(workspace, config)
    environment = environments.ensure(workspace, "train", config.environment.train, say)
    store = to.before.store if to.before else new_store(workspace, config, to.name)
    given = run_folder / FOLDER / GIVEN
    write_given(config, request, given)
    asked = asked_for(workspace, request, to.name, store)
    attempts.remember(run_folder / FOLDER, asked)
    try:
        with snapshot(config) as code, whole_model(config, say) as model:
            wanted = job(
                config,
                request,
                name=to.name,
                owner=workspace.owner,
                code=code,
                given=given,
                model=model,
                environment=environment,
                store=store,
            )
            doing = ("submit a job that runs", ", ".join(request.stages))
            made = job_of(changes.send(workspace, doing, lambda: workspace.client.jobs.create_or_update(wanted), say))
    except StageError as error:
        made = made_all_the_same(workspace, asked, error, say)
    attempts.remember(run_folder / FOLDER, made)
    compute = config.azure_compute
    where = compute.cluster or compute.instance_type
    say(
        f"job {made.name} on {compute.nodes} × {where}{', spot' if compute.spot else ''}"
        f"{', goes on from where the last one ended' if to.before else ''}"
    )
    say(studio(workspace, made))
    return made


def asked_for(workspace: Workspace, request: JobRequest, name: str, store: str) -> Job:
    """A job whose request is about to be sent."""
    return Job(
        name=name,
        stages=tuple(request.stages),
        status=ASKED_FOR,
        fingerprint=request.fingerprint,
        store=store,
        owner=workspace.owner,
    )


def made_all_the_same(workspace: Workspace, asked: Job, error: StageError, say: Say) -> Job:
    """The job whose request ended in an error, if it is there.

    Raises:
        StageError: it is not; or it cannot be told whether it is.
    """
    try:
        found = look(workspace, asked.name)
    except StageError as second:
        raise StageError(
            f"{error.what}; whether job {asked.name} is there could not be seen",
            where=error.where,
            cure="the same command looks before it submits anything; stage=teardown cancels the job if it is there",
        ) from second
    if found is None or found.fingerprint != asked.fingerprint:
        raise error
    say(f"the answer was lost; job {found.name} is there")
    return found


def with_vault(workspace: Workspace, config: Config) -> Config:
    """The configuration with the name of the workspace's own key vault, where none is given and one is needed."""
    if config.secrets.hf_token is None or config.secrets.key_vault:
        return config
    vault = str(workspace.described.key_vault).rpartition("/")[2]
    return config.model_copy(update={"secrets": config.secrets.model_copy(update={"key_vault": vault})})


def new_store(workspace: Workspace, config: Config, name: str) -> str:
    """Address for the output of a job of this name, where nothing lies yet: a registered model may point elsewhere."""
    return Datastore(workspace).address(f"ftkit/{store_name(config.run.name, name)}")


def _follow(workspace: Workspace, of: Job, queue_hours: float, say: Say, show: Say) -> Job:
    """Print a job's log as it grows; returns how the job ended, with the service's reason if it failed."""
    lines, reason = _Lines(show), ""
    try:
        _leaves_the_queue(workspace, of, queue_hours, say)
        with workspace.asking("follow job", of.name), redirect_stdout(lines):
            try:
                workspace.client.jobs.stream(of.name)
            except JobException as error:
                if isinstance(error.__cause__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error
                reason = _reason(str(error))
        ended = _ended(workspace, of)
    except KeyboardInterrupt as error:
        stages = ",".join(of.stages)
        raise Interrupted(
            f"detached; job {of.name} goes on, at its full price\n"
            f"  follow  the same command, or stage={stages} attach={of.name} elsewhere\n"
            "  cancel  stage=teardown"
        ) from error
    except StillQueued:
        raise
    except StageError as error:
        raise StageError(
            f"{error.what}; the job goes on, at its full price",
            where=error.where,
            cure="the same command follows it, stage=teardown cancels it",
        ) from error
    return replace(ended, reason=reason)


def _leaves_the_queue(workspace: Workspace, of: Job, hours: float, say: Say) -> None:
    """Wait until a job has a machine, or has ended.

    Raises:
        StillQueued: it has none after so many hours: the size, or the spot price, is not to be had.
    """
    began = said = changes.now()
    while (found := look(workspace, of.name)) and found.status in QUEUED:
        if changes.now() - began > hours * 3600:
            raise StillQueued(
                f"job {of.name} has waited for a machine for {hours:g} hours",
                where=studio(workspace, of),
                cure="the same command waits on; stage=teardown cancels it, then compute=<another size>, or "
                "compute.spot=false",
            )
        if changes.now() - said > QUEUE_LINE_S:
            said = changes.now()
            say(f"job {of.name} waits for a machine: {(said - began) / 60:.0f} min so far")
        changes.pause(QUEUE_POLL_S)


def _ended(workspace: Workspace, of: Job) -> Job:
    """The job once it has ended, which is later than its log, when it is being cancelled."""
    deadline = changes.now() + END_LIMIT_S
    while True:
        found = look(workspace, of.name)
        if found is None:
            raise StageError(f"job {of.name} is gone", where=workspace.name)
        if found.status in records.ENDED:
            return found
        if changes.now() > deadline:
            raise StageError(f"the log of job {of.name} has ended, and its status is still {found.status}")
        changes.pause(POLL_S)


def check_completed(workspace: Workspace, of: Job, run_folder: Path) -> None:
    """Raises StageError: the job failed, in the words of the process that failed if it left any, or was cancelled."""
    attempts.check_completed(
        of,
        run_folder,
        where=studio(workspace, of),
        cancelled=", or ran into compute.timeout_hours",
        unsaid="the service gives no reason",
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
