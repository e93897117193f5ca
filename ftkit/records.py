"""Records: what a stage was given, what it made and how, in ``outputs/<run>/<stage>/record.json``.

A record is written last and aside, so a stage without one counts as not done.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ftkit.digests import Digests
from ftkit.errors import StageError
from ftkit.files import is_below, written_aside

NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "publish": {"name": str, "version": str, "path": str, "digest": str},
    "train": {"folder": str, "last_loss": (int, float), "global_step": int},
    "merge": {"folder": str, "digest": str, "data": str, "trained": dict},
    "register": {"name": str, "version": str, "path": str, "digest": str},
}
"""What later stages read of a stage's result."""


JOB = "job.json"
"""In ``outputs/<run>/<platform>/``: the job that was submitted last."""
FAILED = ("Failed", "Canceled", "NotResponding")
ENDED = ("Completed", *FAILED)
"""States of a job, in Azure ML's words."""


@dataclass(frozen=True)
class SubmittedJob:
    """What is known here of the job that a run has submitted last.

    Attributes:
        platform: that runs it.
        name: as the platform knows it.
        stages: what it runs.
        status: as the platform said last; one of ``ENDED`` if it runs no more.
    """

    platform: str
    name: str
    stages: tuple[str, ...]
    status: str


def submitted_job(run_folder: Path) -> SubmittedJob | None:
    """The job of a run; None if there was none or its file cannot be read."""
    for path in sorted(run_folder.glob(f"*/{JOB}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            return SubmittedJob(path.parent.name, found["name"], tuple(found["stages"]), found["status"])
    return None


@dataclass(frozen=True)
class Record:
    """One stage's record.

    Attributes:
        stage: the stage's name.
        fingerprint: digest of everything the outcome depends on.
        settings: the configuration values it depends on, by dotted key.
        inputs: what went in, by name: digests of files or fingerprints of predecessors.
        files: what was made: path (relative to the run's folder) to size in bytes.
        digests: SHA-256 of the same.
        result: figures and names that later stages and the user read.
        versions: of Python and the packages that took part.
        seconds: how long the stage took.
        finished: UTC time, ISO 8601.
        place: where ``files`` lie, if not in the run's folder here: the address of an Azure ML job's output.
    """

    stage: str
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, int]
    result: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    finished: str
    place: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    def changed_files(self, run_folder: Path, *, read: bool = True) -> list[str]:
        """Recorded files that are gone or not what they were; those in a job's output are not looked at.

        Args:
            read: False goes by their sizes alone.
        """
        if self.place:
            return []
        wrong = [name for name, size in self.files.items() if _size(run_folder / name) != size]
        if wrong or not read:
            return wrong
        try:
            found = Digests(run_folder)([run_folder / name for name in self.digests])
        except OSError as error:
            return [Path(str(error.filename)).name]
        return [name for name, digest in self.digests.items() if found[run_folder / name] != digest]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted key; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fingerprint(stage: str, settings: dict[str, Any], inputs: dict[str, str], version: str) -> str:
    """Digest of what a stage's outcome depends on: its settings, its inputs and the version of ftkit."""
    text = json.dumps([stage, settings, inputs, version], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def path_of(run_folder: Path, stage: str) -> Path:
    return run_folder / stage / "record.json"


def read(run_folder: Path, stage: str) -> Record | None:
    """The record of a stage, or None when it has not been completed.

    Raises:
        StageError: the file is there but cannot be read as a record.
    """
    path = path_of(run_folder, stage)
    try:
        return parse(path.read_bytes(), stage)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(
            f"the record of {stage} cannot be read: {_in_a_line(error)}",
            where=str(path),
            cure=f"rm {shlex.quote(str(path))}, then stage={stage}",
        ) from error


def parse(content: bytes, stage: str) -> Record:
    """The record that a file holds.

    Raises:
        ValueError: it holds none of this stage, or one that names files outside of the run's folder.
    """
    try:
        record = _schema().validate_json(content)
    except ValidationError as error:
        raise ValueError(_in_a_line(error)) from error
    if record.stage != stage:
        raise ValueError(f"it is that of {record.stage}")
    if outside := [name for name in (*record.files, *record.digests, *_folders(record)) if not is_below(name)]:
        raise ValueError(f"it names {outside[0]}, which lies outside of the run's folder")
    if lacking := [
        name for name in NEEDED.get(stage, {}) if not isinstance(record.result.get(name), NEEDED[stage][name])
    ]:
        raise ValueError(f"result.{lacking[0]} is {record.result.get(lacking[0])!r}")
    return record


@cache
def _schema() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def _folders(record: Record) -> list[str]:
    """What the result names below the run's folder."""
    return [str(record.result.get("folder"))] if record.stage in ("train", "merge") else []


def _in_a_line(error: Exception) -> str:
    found = error.errors() if isinstance(error, ValidationError) else []
    if not found:
        return str(error).partition("\n")[0] or type(error).__name__
    where = ".".join(str(part) for part in found[0]["loc"])
    return f"{where}: {found[0]['msg']}" if where else str(found[0]["msg"])


def write(run_folder: Path, record: Record) -> None:
    """Write a record aside and rename it."""
    with written_aside(path_of(run_folder, record.stage)) as aside:
        aside.write_text(json.dumps(asdict(record), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def discard(run_folder: Path, stage: str) -> None:
    """Take a record away before its stage runs again, so that an interrupted run is not taken for the earlier one."""
    path_of(run_folder, stage).unlink(missing_ok=True)
    _failure_of(run_folder, stage).unlink(missing_ok=True)


@dataclass(frozen=True)
class Failure:
    """Why a stage ended without a record.

    Attributes:
        what: what went wrong, in one line.
        cure: what mends it.
        job: that it ran in; empty for none.
    """

    what: str
    cure: str = ""
    job: str = ""


def note_failure(run_folder: Path, stage: str, failure: Failure) -> None:
    """Leave word of why a stage ended without a record, where there is room for it."""
    with suppress(StageError), written_aside(_failure_of(run_folder, stage)) as aside:
        aside.write_text(json.dumps(asdict(failure)) + "\n", encoding="utf-8")


def failure(run_folder: Path, stage: str) -> Failure | None:
    """Why a stage ended without a record; None if it left no word."""
    try:
        return Failure(**json.loads(_failure_of(run_folder, stage).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _failure_of(run_folder: Path, stage: str) -> Path:
    return run_folder / stage / "failed.json"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
