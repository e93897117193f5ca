"""Records: what a stage was given, what it made and how, in ``outputs/<run>/<stage>/record.json``.

A record is written last and aside, so a stage without one counts as not done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import StageError
from ftkit.files import written_aside


@dataclass(frozen=True)
class Record:
    """One stage's record.

    Attributes:
        stage: the stage's name.
        fingerprint: digest of everything the outcome depends on.
        settings: the configuration values it depends on, by dotted key.
        inputs: what went in, by name: digests of files or fingerprints of predecessors.
        files: what was made: path (relative to the run's folder) to size in bytes.
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

    def missing_files(self, run_folder: Path) -> list[str]:
        """Recorded files that are gone or of another size; those in a job's output are not looked at."""
        return [] if self.place else [name for name, size in self.files.items() if _size(run_folder / name) != size]


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
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StageError(
            f"the record of {stage} cannot be read: {error}", where=str(path), cure=f"delete it and run stage={stage}"
        ) from error


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
        aside.write_text(json.dumps(asdict(failure), ensure_ascii=False) + "\n", encoding="utf-8")


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
