"""What runs and kept versions take of this machine's disk, what still needs each of them, and how they are removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ftkit import records
from ftkit.config.compute import label_of
from ftkit.errors import StageError
from ftkit.files import everything_below, explained, size_of
from ftkit.locks import locked, locked_if_free
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.platforms.local import store
from ftkit.records import flat
from ftkit.reports.runs import run_folders

CHECKPOINTS = "checkpoints"
STORE, ENDPOINTS = "_workspace", "endpoints"


@dataclass(frozen=True)
class Kept:
    """A run, or a version of data or of a model.

    Attributes:
        name: of the run; ``name:version``.
        kind: ``run``, ``data`` or ``models``.
        folder: that holds it.
        bytes: that its files take.
        checkpoints: bytes of its checkpoints; 0 for a version.
    """

    name: str
    kind: str
    folder: Path
    bytes: int
    checkpoints: int = 0


class Disk:
    """The folder of all runs, looked at once.

    Args:
        outputs: ``run.outputs``.
    """

    def __init__(self, outputs: Path):
        self.outputs = outputs

    @cached_property
    def runs(self) -> dict[str, Kept]:
        """By name."""
        return {
            name: Kept(name, "run", folder, size_of([folder]), size_of([folder / CHECKPOINTS]))
            for name, folder in run_folders(self.outputs).items()
        }

    @cached_property
    def versions(self) -> dict[str, list[Kept]]:
        """By ``name:version``; data and a model may have the same."""
        found: dict[str, list[Kept]] = {}
        for kind in store.KINDS:
            for folder in sorted((self.outputs / STORE / kind).glob("*/[0-9]*"), key=_by_number):
                if store.is_kept(folder):
                    id = f"{folder.parent.name}:{folder.name}"
                    found.setdefault(id, []).append(Kept(id, kind, folder, size_of([folder])))
        return found

    @cached_property
    def _settings(self) -> dict[str, Mapping[str, Any]]:
        """Each run's configuration by dotted key."""
        return {name: _flat_yaml(run.folder / "config.yaml") for name, run in self.runs.items()}

    @cached_property
    def _links(self) -> dict[str, list[Path]]:
        """Where the links in each run lead."""
        return {name: _led_to(run.folder) for name, run in self.runs.items()}

    @cached_property
    def _served(self) -> dict[str, tuple[str, list[Path]]]:
        """What each endpoint that runs serves, and the folders that it has files from."""
        endpoints = self.outputs / STORE / ENDPOINTS
        names = [path.name for path in endpoints.glob("*") if path.is_dir()]
        live = [local_endpoint.find(endpoints, n) or local_endpoint.find_starting(endpoints, n) for n in names]
        return {
            each.endpoint_name: (each.model, [Path(each.model_dir).resolve(), *_led_to(Path(each.model_dir))])
            for each in live
            if each
        }

    def needs_run(self, name: str, removed: Collection[str] = ()) -> list[str]:
        """Why a run has to stay, in words; nothing if it can go together with ``removed``."""
        folder = self.runs[name].folder
        why = [*self._at_work(folder, folder), *_job_under_way(folder)]
        others = [other for other in self.runs if other != name and other not in removed]
        why += [f"run {o} builds on it (run.base)" for o in others if self._settings[o].get("run.base") == name]
        return why + list(self._used_by(folder, others))

    def needs_version(self, version: Kept, removed: Collection[str] = ()) -> list[str]:
        """Why a version has to stay, in words; nothing if no run but those in ``removed`` has made or uses it."""
        why = list(self._at_work(version.folder.parent, version.folder))
        others = [name for name in self.runs if name not in removed]
        if version.kind == "models":
            why += [f"endpoint {name} serves it" for name, (model, _) in self._served.items() if model == version.name]
        stage = "publish" if version.kind == "data" else "register"
        why += [f"run {name} needs it" for name in others if _made(self.runs[name].folder, stage) == version.name]
        return list(dict.fromkeys([*why, *self._used_by(version.folder, others)]))

    def has_spare_checkpoints(self, name: str) -> bool:
        """Whether a run has checkpoints, and its training, finished, no longer needs them."""
        run, folder = self.runs[name], self.runs[name].folder / CHECKPOINTS
        if not run.checkpoints or not records.path_of(run.folder, "train").is_file():
            return False
        others = [other for other in self.runs if other != name]
        return not [*self._at_work(run.folder, folder), *self._used_by(folder, others)]

    def _at_work(self, locked_folder: Path, folder: Path) -> Iterator[str]:
        with locked_if_free(locked_folder) as free:
            if not free:
                yield "a command is at work in it"
        for name, (_, folders) in self._served.items():
            if any(path.is_relative_to(folder.resolve()) for path in folders):
                yield f"endpoint {name} serves it"

    def _used_by(self, folder: Path, others: Sequence[str]) -> Iterator[str]:
        """Runs whose settings name a path in a folder, or that hold a link into it."""
        home = folder.resolve()
        for other in others:
            for key, value in self._settings[other].items():
                if isinstance(value, str) and os.sep in value and _resolved(value).is_relative_to(home):
                    yield f"run {other} reads it ({key})"
                    break
            else:
                if any(path.is_relative_to(home) for path in self._links[other]):
                    yield f"run {other} has a link into it"


def remove_run(run: Kept) -> None:
    """Remove a run: its records first, its configuration last, so that ``kill -9`` leaves a run to be removed again.

    Raises:
        StageError: a command has begun to work in it, or a file cannot be removed.
    """
    with _removing(run.folder, "stage=clean"):
        for record in run.folder.glob("*/record.json"):
            record.unlink()
        for path in [path for path in run.folder.iterdir() if path.name not in ("config.yaml", ".lock")]:
            _remove(path)
        shutil.rmtree(run.folder)


def remove_checkpoints(run: Kept) -> None:
    """Remove a run's checkpoints.

    Raises:
        StageError: as ``remove_run``.
    """
    with _removing(run.folder, "stage=clean"):
        shutil.rmtree(run.folder / CHECKPOINTS)


def remove_version(version: Kept) -> None:
    """Remove what a version holds; its number stays taken.

    Raises:
        StageError: as ``remove_run``.
    """
    with _removing(version.folder.parent, f"stage=clean of {version.name}"):
        store.empty(version.folder)


@contextmanager
def _removing(folder: Path, does: str) -> Iterator[None]:
    """Hold a folder's lock, and tell an error of the file system in words."""
    with locked(folder, does):
        try:
            yield
        except OSError as error:
            raise explained(error, folder) from error


def _made(run_folder: Path, stage: str) -> str:
    """The version that a stage of a run has made here; empty for none."""
    try:
        record = records.read(run_folder, stage)
    except StageError:
        return ""
    return f"{record.result['name']}:{record.result['version']}" if record else ""


def _job_under_way(run_folder: Path) -> Iterator[str]:
    if (job := records.submitted_job(run_folder)) and job.status not in records.ENDED:
        yield f"job {job.name} on {label_of(job.platform)} has not ended"


def _flat_yaml(path: Path) -> Mapping[str, Any]:
    try:
        return dict(flat(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}


def _led_to(folder: Path) -> list[Path]:
    """Where the links below a folder lead."""
    return [path.resolve() for path in everything_below(folder) if path.is_symlink()]


def _resolved(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return Path("/")


def _by_number(folder: Path) -> tuple[str, int]:
    return folder.parent.name, int(folder.name) if folder.name.isdecimal() else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
