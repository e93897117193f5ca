"""Jobs on Slurm: submit one, follow it to its end, take over the small files that it wrote; Ctrl-C leaves it running.

Everything of a piece of work lies in ``outputs/<run>/slurm/<work>/``: what jobs start from (``given``), the runs that
they write (``runs``), and of each attempt the script, the log and, once it has ended, its exit status. A job's name is
made of the work, so that one under way is followed and a completed one is not submitted again.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import Interrupted, StageError
from ftkit.files import everything_below, written_aside
from ftkit.platforms import job_files
from ftkit.platforms.base import JobRequest, Say
from ftkit.platforms.slurm import scheduler
from ftkit.platforms.slurm.script import batch_script, sbatch_options

FOLDER = "slurm"
POLL_S, QUEUE_LINE_S = 1.0, 600.0
CANCEL_LIMIT_S = 300.0
VANISHED_S = 60.0
"""How long a job that Slurm no longer knows may take to leave its exit status on a slow file system."""


@dataclass(frozen=True)
class Job:
    """An attempt at a piece of work.

    Attributes:
        name: in Slurm.
        stages: what it runs.
        folder: of the work.
        status: in the words of ``ftkit.records``.
    """

    name: str
    stages: tuple[str, ...]
    folder: str
    status: str = "Queued"

    @property
    def log(self) -> Path:
        """What it prints."""
        return Path(self.folder, f"{self.name}.log")

    @property
    def runs(self) -> Path:
        """Takes the place of ``run.outputs`` in it."""
        return Path(self.folder, "runs")

    @property
    def ended(self) -> Path:
        """Holds its exit status once it has ended by itself."""
        return Path(self.folder, f"{self.name}.ended")


def run(config: Config, run_folder: Path, request: JobRequest, say: Say, show: Say) -> Job:
    """Submit a job, or follow the one that does this work already; take over what it wrote.

    Raises:
        StageError: it failed, was cancelled or ran out of its time.
        Interrupted: Ctrl-C; the job goes on.
    """
    if config.attach:
        raise StageError(
            f"attach={config.attach} names a job of Azure ML",
            cure="leave it out: the same command follows a job that is under way",
        )
    job, is_new = _find(config, run_folder, request)
    if is_new:
        _submit(config, job, request)
    remember(run_folder, job)
    said = {"Completed": "has completed: taking over what it wrote"}.get(job.status, "is under way: following it")
    say(f"job {job.name} {'is submitted' if is_new else said}; log in {job.log}")
    try:
        job = _follow(job, say, show)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"job {job.name} goes on; the same command follows it again, stage=teardown cancels it"
        ) from error
    remember(run_folder, job)
    _take_over(job.runs / config.run.name, run_folder, job)
    _check_completed(job, run_folder)
    return job


def _find(config: Config, run_folder: Path, request: JobRequest) -> tuple[Job, bool]:
    """The attempt to follow or take over, or the next one and True.

    With ``force`` a completed attempt is done with.
    """
    folder = run_folder / FOLDER / job_files.digest(config.run.name, request.fingerprint)
    for attempt in count(1):
        name = job_files.job_name(config.run.name, request.fingerprint, attempt)
        job = Job(name, tuple(request.stages), str(folder.resolve()))
        if not _script(job).exists():
            return job, True
        job = replace(job, status=status_of(job))
        if job.status not in records.ENDED or (job.status == "Completed" and not config.force):
            return job, False
    raise AssertionError("there is always a next attempt")


def status_of(job: Job) -> str:
    """How a job is, by the exit status that it left and by what Slurm knows of it; ``NotResponding`` by neither.

    Raises:
        StageError: Slurm does not answer.
    """
    seen = scheduler.find(job.name)
    if job.ended.exists():
        if job.ended.read_text(encoding="utf-8").strip() == "0":
            return "Completed"
        return "Canceled" if seen and seen.state == "CANCELLED" else "Failed"
    if seen is None:
        return "NotResponding"
    return scheduler.ENDED.get(seen.state, "Queued" if seen.state in scheduler.QUEUED else "Running")


def remember(run_folder: Path, job: Job) -> None:
    """Note the job that the run has submitted last."""
    path = run_folder / FOLDER / records.JOB
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")


def under_way(run_folder: Path) -> tuple[Job, scheduler.Seen] | None:
    """The job that the run has submitted last, if it has not ended."""
    try:
        found = json.loads((run_folder / FOLDER / records.JOB).read_text(encoding="utf-8"))
        job = Job(**{**found, "stages": tuple(found["stages"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    seen = scheduler.find(job.name)
    return (job, seen) if seen and seen.state not in scheduler.ENDED and not job.ended.exists() else None


def cancel(job: Job, number: str) -> None:
    """Cancel a job, which saves first, and see it end.

    Raises:
        StageError: Slurm refuses it, or the job runs on.
    """
    scheduler.cancel(number)
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while status_of(job) not in records.ENDED:
        if time.monotonic() > deadline:
            raise StageError(
                f"job {job.name} still runs {CANCEL_LIMIT_S:.0f} s after it was cancelled", where=str(job.log)
            )
        time.sleep(POLL_S)


def _submit(config: Config, job: Job, request: JobRequest) -> None:
    given = Path(job.folder, "given")
    job_files.write_given(config, request, given)
    script = _script(job)
    text = batch_script(config, request, name=job.name, given=given, runs=job.runs, ended=job.ended)
    script.write_text(text, encoding="utf-8")
    try:
        scheduler.submit(script, sbatch_options(config, request, job.name, job.log))
    except BaseException:
        if scheduler.find(job.name) is None:
            script.unlink()
        raise


def _script(job: Job) -> Path:
    return Path(job.folder, f"{job.name}.sh")


def _follow(job: Job, say: Say, show: Say) -> Job:
    """Print a job's log as it grows, until the job has ended."""
    began = said = seen_last = time.monotonic()
    read = 0
    while True:
        status = status_of(job)
        read = _show_log(job, read, show, whole=status in records.ENDED)
        if status != "NotResponding":
            seen_last = time.monotonic()
        if status in records.ENDED and not (status == "NotResponding" and time.monotonic() - seen_last < VANISHED_S):
            return replace(job, status=status)
        if status == "Queued" and time.monotonic() - said > QUEUE_LINE_S:
            said = time.monotonic()
            waiting = scheduler.find(job.name)
            why = f" ({waiting.why})" if waiting else ""
            say(f"job {job.name} waits for a machine{why}: {(said - began) / 60:.0f} min so far")
        time.sleep(POLL_S)


def _show_log(job: Job, read: int, show: Say, *, whole: bool) -> int:
    """Print the lines of the log from a byte on; returns the byte that the next begin at."""
    if not job.log.exists():
        return read
    with job.log.open("rb") as log:
        log.seek(read)
        new = log.read()
    end = len(new) if whole else new.rfind(b"\n") + 1
    for line in new[:end].decode("utf-8", "replace").splitlines():
        show(line.rstrip())
    return read + end


def _take_over(written: Path, run_folder: Path, job: Job) -> None:
    """Bring records, curves and tables of a job's run here; records come last, and say where the large files lie."""
    found: list[Path] = []
    for stage in job.stages:
        for path in everything_below(written / stage):
            relative = path.relative_to(written)
            if path.is_symlink() or not path.is_file() or not job_files.comes_here(relative.parts, path.stat().st_size):
                continue
            if path.name == "record.json":
                found.append(path)
                continue
            (run_folder / relative).parent.mkdir(parents=True, exist_ok=True)
            with written_aside(run_folder / relative) as aside:
                shutil.copyfile(path, aside)
    for path in reversed(found):
        record = records.parse(path.read_bytes(), path.parent.name)
        kept = {**record.result, "job": job.name, "store": str(written)}
        records.write(run_folder, replace(record, place=str(written), result=kept))


def _check_completed(job: Job, run_folder: Path) -> None:
    """Raises StageError: the job failed, in the words of the process that failed if it left any, or was cancelled."""
    if job.status == "Completed":
        return
    names, again = ", ".join(job.stages), "the same command submits it again and goes on from its last checkpoint"
    if job.status == "Canceled":
        raise StageError(f"job {job.name} ({names}) was cancelled", where=str(job.log), cure=again)
    if job.status == "NotResponding":
        what = f"Slurm knows nothing more of job {job.name} ({names}), which left no exit status"
        raise StageError(what, where=str(job.log), cure=again)
    left = (records.failure(run_folder, stage) for stage in job.stages)
    own = next((failure for failure in left if failure and failure.job == job.name), None)
    what = own.what if own else "its log says why"
    raise StageError(
        f"job {job.name} ({names}) failed: {what}", where=str(job.log), cure=own.cure if own and own.cure else again
    )
