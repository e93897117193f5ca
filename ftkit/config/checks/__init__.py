"""Checks across groups: combinations that fail, or silently do the wrong thing. All run, all are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ftkit.config.checks import autoscale, data, evaluation, generation, methods, platform, schedule, serving, training
from ftkit.config.checks.paths import paths_can_be_looked_up
from ftkit.config.problems import NotJudged
from ftkit.config.schema import Config
from ftkit.errors import Problem

Check = Callable[[Config], Iterator[Problem]]

CHECKS: tuple[Check, ...] = (
    *platform.CHECKS,
    *data.CHECKS,
    *training.CHECKS,
    *methods.CHECKS,
    *schedule.CHECKS,
    *serving.CHECKS,
    *autoscale.CHECKS,
    *evaluation.CHECKS,
    *generation.CHECKS,
)


def all_checks(config: Config) -> Iterator[Problem]:
    """Run every check but those that ask for a group which is faulty itself; none where a path can be none.

    Yields:
        Problems without ``where``; the caller finds the file.
    """
    if odd := list(paths_can_be_looked_up(config)):  # others look for files
        yield from odd
        return
    for check in CHECKS:
        try:
            yield from list(check(config))
        except NotJudged:
            continue
