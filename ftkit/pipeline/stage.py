"""What a stage is given and hands back, and the settings that its outcome depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit.config.from_environment import told_apart
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, Stage
from ftkit.platforms.base import Platform, platform_of
from ftkit.records import Record, flat


@dataclass(frozen=True)
class Made:
    """What a stage hands back.

    Attributes:
        summary: one line for the user.
        files: what was written, below the run's folder.
        result: figures and names for the record.
    """

    summary: str
    files: Sequence[Path] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A predecessor's record and the run folder that it lies in."""

    record: Record
    run_folder: Path

    @property
    def folder(self) -> Path:
        return self.run_folder / self.record.stage

    def address(self, name: str) -> str:
        """Where a file or folder of the run lies: a path here, or an address in the output of an Azure ML job."""
        return f"{self.record.place}/{name}" if self.record.place else str(self.run_folder / name)


@dataclass(frozen=True)
class Context:
    """What a stage's ``run`` is given.

    Attributes:
        config: the whole configuration.
        run_folder: ``outputs/<run>``.
        folder: ``outputs/<run>/<stage>``, where the stage writes.
        fingerprint: digest of all that the outcome depends on.
        needs: records of the stages it needs, by name.
        say: prints a line to the user.
        stage: the stage's name.
        label: begins every printed line, where several runs print at a time; empty where one does.
    """

    config: Config
    run_folder: Path
    folder: Path
    fingerprint: str
    needs: Mapping[str, Found]
    say: Callable[[str], None]
    stage: str
    label: str = ""

    @property
    def platform(self) -> Platform:
        """Where the stage's work happens."""
        return self.platform_named(BY_NAME[self.stage].place_of(self.config))

    def platform_named(self, name: str) -> Platform:
        """One that the run may use.

        Raises:
            StageError: a package or a program that it needs is missing.
        """
        return platform_of(name, self.config, self.run_folder)


def settings_of(stage: Stage, config: Config) -> dict[str, Any]:
    """The configuration values that a stage's outcome depends on, by dotted key, flat; of secrets, which they are."""
    whole = dict(flat(config.model_dump()))
    whole |= {key: told_apart(whole[key], text) for key, text in config.from_environment.items() if key in whole}
    taken = [key for key in stage.reads if not key.startswith("-")]
    left = [key[1:] for key in stage.reads if key.startswith("-")]
    return {key: value for key, value in whole.items() if _has_prefix(key, taken) and not _has_prefix(key, left)}


def _has_prefix(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
