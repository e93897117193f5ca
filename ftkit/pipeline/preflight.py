"""What stages would refuse at once, found before the first of them starts; ``plan`` shows it without starting any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, PROCESS, Stage
from ftkit.errors import StageError
from ftkit.packages import require_extra
from ftkit.pipeline.lineage import find, folder_of
from ftkit.platforms.base import platform_of

NEEDS_IT = {"train": "training", "serve": "asking a server"}
"""What an extra is for."""


def refuse(config: Config) -> None:
    """Raise what one of the stages asked for would refuse.

    Raises:
        StageError: a package, a predecessor, a server or a port is missing.
    """
    if config.job.records:  # was looked at where the job was submitted
        return
    for error in (*missing_predecessors(config, config.stages), *refusals(config, config.stages)):
        raise error


def missing_predecessors(config: Config, stages: Sequence[str]) -> Iterator[StageError]:
    """What a stage needs, and no stage before it in the same command makes."""
    for name in stages:
        for need in BY_NAME[name].needed(config):
            if need in stages:
                continue
            try:
                find(config, BY_NAME[need], name)
            except StageError as error:
                yield error


def refusals(config: Config, stages: Sequence[str]) -> Iterator[StageError]:
    """Everything else that is not there, each once."""
    seen: set[str] = set()
    for name in stages:
        try:
            _look(config, BY_NAME[name])
        except StageError as error:
            if error.what not in seen:
                seen.add(error.what)
                yield error


def _look(config: Config, stage: Stage) -> None:
    place = stage.place_of(config)
    if place != PROCESS:
        platform = platform_of(place, config, folder_of(config))
        if stage.starts_server:
            platform.check_deployable()
    if (extra := stage.extra(config)) and not stage.runs_as_job(config):
        require_extra(extra, NEEDS_IT[extra])
