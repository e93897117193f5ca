"""Every error that ftkit raises on purpose, and the exit status each ends the command with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class FtkitError(Exception):
    """Base of all of ftkit's own errors; the command line prints it without a traceback."""

    exit_status = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration.

    Attributes:
        key: dotted key, ``sft.packing``; or a group, ``lora``.
        what: what is wrong with it, the value included.
        where: the file it came from, or ``on the command line``.
        cure: what to write instead.
    """

    key: str
    what: str
    where: str
    cure: str = ""


def nearest(word: str, among: Iterable[str]) -> str | None:
    """The closest of several names, the first of equals, or None when none is close."""
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in among}
    closest = max(likeness, key=lambda name: likeness[name], default=None)
    return closest if closest is not None and likeness[closest] >= 0.6 else None


class ConfigError(FtkitError):
    """The configuration is wrong; nothing was started. Carries every problem, not just the first."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.key}: {p.what}" for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class StageError(FtkitError):
    """A stage could not do its work.

    Args:
        what: what is wrong, in one sentence.
        where: the file, row or address concerned.
        cure: the command or change that mends it.
    """

    def __init__(self, what: str, *, where: str = "", cure: str = ""):
        self.what, self.where, self.cure = what, where, cure
        parts = (what, where and f"  where  {where}", cure and f"  cure   {cure}")
        super().__init__("\n".join(part for part in parts if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return _stage_error, (self.what, self.where, self.cure)


def _stage_error(what: str, where: str, cure: str) -> StageError:
    return StageError(what, where=where, cure=cure)


class Interrupted(FtkitError):
    """The user pressed Ctrl-C, or the machine asked the process to end."""

    exit_status = 130
