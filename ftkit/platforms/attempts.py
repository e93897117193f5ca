"""Attempts at a piece of work: jobs whose names are made of it, alike on all platforms that have jobs.

The name is known before a job is asked for. So one that is under way is followed, one that has completed is taken over,
and none is paid for twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

from ftkit import records
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.files import written_aside
from ftkit.platforms import job_files

AGAIN = "the same command submits it again and goes on from its last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that was submitted.

    Attributes:
        name: as the platform knows it.
        stages: what it runs.
        status: as the platform gave it last, in the words of ``ftkit.records`` once it has ended.
        reason: of a failure, in the platform's words; empty where it gives none.
        fetched: whether what it wrote has come into the run's folder.
    """

    name: str
    stages: tuple[str, ...]
    status: str = "Queued"
    reason: str = ""
    fetched: bool = False


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class Place(Generic[AnyJob]):
    """Where the next job for some work goes.

    Attributes:
        name: of the job.
        before: the last job for the same work, which did not complete or is done with; None if there is none.
    """

    name: str
    before: AnyJob | None


def find(
    config: Config, fingerprint: str, look: Callable[[str], AnyJob | None], last: AnyJob | None
) -> AnyJob | Place[AnyJob]:
    """The job that does a piece of work already, to be followed or taken over; else where the next one goes.

    With ``force`` a completed job is done with, unless what it wrote has not come here yet.

    Args:
        fingerprint: of the work.
        look: the job of a name as it is now; None if there is none.
        last: the job that the run has submitted last, as ``remembered`` has it.
    """
    before = None
    for attempt in count(1):
        found = look(name := job_files.job_name(config.run.name, fingerprint, attempt))
        if found is None:
            return Place(name, before)
        unfetched = last is not None and last.name == name and not last.fetched
        done_with = config.force and not unfetched
        if found.status not in records.ENDED or (found.status == "Completed" and not done_with):
            return found
        before = found
    raise AssertionError("names never end")


def remember(folder: Path, job: Job) -> None:
    """Note in a platform's folder of a run the job that the run has submitted last."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / records.JOB) as aside:
        aside.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")


def remembered(folder: Path, kind: type[AnyJob]) -> AnyJob | None:
    """The job that a run has submitted last, as it was then; None where none is noted."""
    try:
        found = json.loads((folder / records.JOB).read_text(encoding="utf-8"))
        return kind(**{**found, "stages": tuple(found["stages"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_completed(job: Job, run_folder: Path, *, where: str, cancelled: str, unsaid: str) -> None:
    """See that a job that has ended has completed.

    Args:
        where: to look at it.
        cancelled: what else its cancellation may mean; empty for nothing.
        unsaid: what is said of a failure without a reason.

    Raises:
        StageError: it failed, in the words of the process that failed if it left any, or was cancelled.
    """
    if job.status == "Completed":
        return
    names = ", ".join(job.stages)
    if job.status == "Canceled":
        raise StageError(f"job {job.name} ({names}) was cancelled{cancelled}", where=where, cure=AGAIN)
    left = (records.failure(run_folder, stage) for stage in job.stages)
    own = next((failure for failure in left if failure and failure.job == job.name), records.Failure(job.reason))
    what = f"job {job.name} ({names}) failed: {own.what or unsaid}"
    raise StageError(what, where=where, cure=own.cure or f"mend what it says; {AGAIN}")
