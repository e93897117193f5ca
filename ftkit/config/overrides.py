"""The command line read as Hydra overrides, with two liberties: Japanese needs no quotes, and stage=a,b is a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.errors import HydraException

from ftkit.config.sources import groups, options
from ftkit.errors import Problem

ON_THE_COMMAND_LINE = "on the command line"
LISTS = ("stage", "tracking")
"""Keys whose values with a comma are lists, and no sweep."""


@dataclass(frozen=True)
class CommandLine:
    """Overrides as Hydra takes them, and what was wrong with the others.

    Attributes:
        overrides: those that Hydra can apply; values are forced (``++``), so that the schema judges unknown keys.
        problems: one for each that was left out.
    """

    overrides: tuple[Override, ...]
    problems: tuple[Problem, ...]

    @property
    def arguments(self) -> list[str]:
        return [o.input_line for o in self.overrides if o.input_line]

    @property
    def keys(self) -> set[str]:
        return {o.key_or_group for o in self.overrides}

    def combinations(self) -> Iterator[list[str]]:
        """The override lists of each run of a sweep, the ends of an interval; one list when nothing is swept."""
        return (list(combination) for combination in product(*map(_each, self.overrides)))

    def swept(self) -> set[str]:
        return {o.key_or_group for o in self.overrides if o.is_sweep_override()}


def read(arguments: Sequence[str], multirun: bool) -> CommandLine:
    """Parse ``key=value`` arguments; collects problems instead of stopping at the first."""
    parser = OverridesParser.create()
    overrides: list[Override] = []
    problems: list[Problem] = []
    for argument in arguments:
        try:
            override = parser.parse_override(_plain_words(argument))
        except HydraException:
            problems.append(_unreadable(argument))
            continue
        problem = _bad_option(override) or (None if multirun else _sweep_without_multirun(override))
        if problem:
            problems.append(problem)
        else:
            overrides.append(_force(parser, override))
    return CommandLine(tuple(overrides), tuple(problems))


def nearest(word: str, among: Iterable[str]) -> str | None:
    """The closest of several names, the first of equals, or None when none is close."""
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in among}
    closest = max(likeness, key=lambda name: likeness[name], default=None)
    return closest if closest is not None and likeness[closest] >= 0.6 else None


def _plain_words(argument: str) -> str:
    """Quote text that Hydra's grammar has no letters for (Japanese), and read ``stage=a,b`` as a list."""
    key, equals, value = argument.partition("=")
    if not equals or value[:1] in "'\"[{$":
        return argument
    if key.lstrip("+") in LISTS and "," in value:
        return f"{key}=[{value}]"
    if not value.isascii():
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return argument


def _force(parser: OverridesParser, override: Override) -> Override:
    line = override.input_line or ""
    is_value = override.key_or_group not in groups() and not override.key_or_group.startswith(("hydra.", "hydra/"))
    if is_value and override.type in (OverrideType.CHANGE, OverrideType.ADD):
        return parser.parse_override("++" + line.lstrip("+"))
    return override


def _each(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if isinstance(interval := override.value(), IntervalSweep):
        return [f"{override.get_key_element()}={end}" for end in (interval.start, interval.end)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _bad_option(override: Override) -> Problem | None:
    group = override.key_or_group
    if group not in groups() or override.type == OverrideType.DEL:
        return None
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
    for value in values:
        if value is not None and str(value) not in options(group):
            return missing_option(group, str(value), ON_THE_COMMAND_LINE)
    return None


def missing_option(group: str, option: str, where: str) -> Problem:
    """The problem of an option that does not exist, with the nearest that does."""
    close = nearest(option, options(group))
    hint = f"did you mean {group}={close}? " if close else ""
    return Problem(group, f"no option {option!r}", where, f"{hint}there are {', '.join(options(group))}")


def _sweep_without_multirun(override: Override) -> Problem | None:
    if not override.is_sweep_override() or override.key_or_group.startswith("hydra"):
        return None
    line = (override.input_line or "").lstrip("+")
    key, _, value = line.partition("=")
    return Problem(
        override.key_or_group,
        f"several values, {value}",
        ON_THE_COMMAND_LINE,
        f"add -m to run one after another, or write a list as {key}=[{value}], a text as {key}='\"{value}\"'",
    )


def _unreadable(argument: str) -> Problem:
    if "=" not in argument:
        close = nearest(argument, [*groups(), "stage"])
        hint = f"did you mean {close}=…?" if close else "write key=value, stage=plan for instance"
        return Problem(argument, "not of the form key=value", ON_THE_COMMAND_LINE, hint)
    key, _, value = argument.partition("=")
    return Problem(key, f"cannot be read: {value}", ON_THE_COMMAND_LINE, f"put quotes inside quotes: {key}='\"…\"'")
