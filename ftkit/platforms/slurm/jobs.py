"""Jobs on Slurm: submit one, follow it to its end, take over the small files that it wrote; Ctrl-C leaves it running.

Everything of a piece of work lies in ``outputs/<run>/slurm/<work>/``: what jobs start from (``given``), the runs that
they write (``runs``), and of each attempt the script, the log and, once it has ended, its exit status. A job's name is
made of the work, so that one under way is followed and a completed one is not submitted again.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import Interrupted, StageError
from ftkit.files import everything_below, written_aside
from ftkit.platforms import attempts, job_files
from ftkit.platforms.attempts import Place
from ftkit.platforms.base import JobRequest, Say
from ftkit.platforms.slurm import scheduler
from ftkit.platforms.slurm.script import batch_script, sbatch_options

FOLDER = "slurm"
POLL_S, QUEUE_LINE_S = 1.0, 600.0
CANCEL_LIMIT_S = 300.0
VANISHED_S = 60.0
"""How long a job that Slurm no longer knows may take to leave its exit status on a slow file system."""
VANISHED = "Slurm knows nothing more of it, and it left no exit status"


@dataclass(frozen=True, kw_only=True)
class Job(attempts.Job):
    """An attempt at a piece of work.

    Attributes:
        folder: of the work.
    """

    folder: str

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
        """Holds its exit status once its script has ended."""
        return Path(self.folder, f"{self.name}.ended")

    @property
    def exit_status(self) -> str | None:
        """What its script has ended with; None while it has not."""
        return self.ended.read_text(encoding="utf-8").strip() if self.ended.exists() else None


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
    folder = run_folder / FOLDER / job_files.digest(config.run.name, request.fingerprint)
    found = _find(config, run_folder, request, folder)
    if isinstance(found, Place):
        job = Job(name=found.name, stages=tuple(request.stages), folder=str(folder.resolve()))
        _submit(config, job, request)
        said = "is submitted"
    else:
        job = found
        said = "has completed: taking over what it wrote" if job.status == "Completed" else "is under way: following it"
    attempts.remember(run_folder / FOLDER, job)
    say(f"job {job.name} {said}; log in {job.log}")
    try:
        job = _follow(job, say, show)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"job {job.name} goes on; the same command follows it again, stage=teardown cancels it"
        ) from error
    attempts.remember(run_folder / FOLDER, job)
    _take_over(job.runs / config.run.name, run_folder, job)
    attempts.check_completed(job, run_folder, where=str(job.log), cancelled="", unsaid="its log says why")
    attempts.remember(run_folder / FOLDER, job := replace(job, fetched=True))
    return job


def _find(config: Config, run_folder: Path, request: JobRequest, folder: Path) -> Job | Place[Job]:
    """The attempt to follow or take over; else where the next one goes."""

    def look(name: str) -> Job | None:
        job = Job(name=name, stages=tuple(request.stages), folder=str(folder.resolve()))
        return replace(job, status=status_of(job)) if _script(job).exists() else None

    return attempts.find(config, request.fingerprint, look, attempts.remembered(run_folder / FOLDER, Job))


def status_of(job: Job) -> str:
    """How a job is, by the exit status that it left and by what Slurm knows of it; ``NotResponding`` by neither.

    Whether a job failed or was cancelled Slurm says when its last process has ended, which is later than its own word.

    Raises:
        StageError: Slurm does not answer.
    """
    seen = scheduler.find(job.name)
    if (status := job.exit_status) is None:
        if seen is None:
            return "NotResponding"
        return scheduler.ENDED.get(seen.state, "Queued" if seen.state in scheduler.QUEUED else "Running")
    if status == "0":
        return "Completed"
    return scheduler.ENDED.get(seen.state, "Running") if seen else "Failed"


def under_way(run_folder: Path) -> tuple[Job, scheduler.Seen] | None:
    """The job that the run has submitted last, if it has not ended."""
    if (job := attempts.remembered(run_folder / FOLDER, Job)) is None:
        return None
    seen = scheduler.find(job.name)
    return (job, seen) if seen and seen.state not in scheduler.ENDED and job.exit_status != "0" else None


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
            reason = VANISHED if status == "NotResponding" else ""
            return replace(job, status=status, reason=reason)
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
