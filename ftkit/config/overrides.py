"""The command line read as Hydra overrides, with liberties: Japanese needs no quotes, ``train`` is ``stage=train``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType
from hydra.errors import HydraException

from ftkit.config.option_files import conf_dirs, groups, options
from ftkit.config.stages import STAGE_WORDS
from ftkit.config.words import ON_THE_COMMAND_LINE, joined, no_assignment
from ftkit.errors import Problem, nearest
from ftkit.packages import install_command

LISTS = ("stage", "tracking", "clean.runs", "clean.versions")
"""Keys whose values with a comma are lists, and no sweep."""
PLUGINS = {
    "hydra/launcher": {"parallel": "sweep", "azureml": "sweep", "joblib": "sweep"},
    "hydra/sweeper": {"search": "search", "optuna": "search"},
}
"""The extra of ftkit that an option of Hydra's comes with."""
PLUGIN_MODULES = {
    "sweep": "hydra_plugins.hydra_joblib_launcher",
    "search": "hydra_plugins.hydra_optuna_sweeper",
}


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
    whole, problems = joined(arguments)
    for argument in _stages_named(whole):
        try:
            override = parser.parse_override(_plain_words(argument, multirun))
            problem = _bad_option(override) or (None if multirun else _sweep_without_multirun(override))
        except HydraException:
            problem, override = _unreadable(argument), None
        if problem:
            problems.append(problem)
        elif override:
            overrides.append(_force(parser, override))
    if multirun:
        problems += _intervals(overrides)
    return CommandLine(tuple(overrides), tuple(problems))


def key_of(argument: str) -> str:
    """The key or group of an override as it is typed, ``++sft.packing=false``."""
    return argument.lstrip("+~").partition("=")[0].partition("@")[0]


def _stages_named(arguments: list[str]) -> list[str]:
    """``train compute=h100x2`` means ``stage=train compute=h100x2``; ``stage=prepare,train`` takes more of them too."""
    bare = [a for a in arguments if a and all(word in STAGE_WORDS for word in a.strip(",").split(","))]
    if not bare:
        return arguments
    given = [a for a in arguments if a.startswith("stage=")]
    rest = [a for a in arguments if a not in bare and a not in given]
    names = [word for a in given for word in a.removeprefix("stage=").strip("[]").split(",")]
    names += [word for a in bare for word in a.strip(",").split(",")]
    return [f"stage={','.join(dict.fromkeys(names))}", *rest]


def _plain_words(argument: str, multirun: bool) -> str:
    """Quote text that Hydra's grammar has no letters for (Japanese), and read ``stage=a,b`` as a list.

    In a sweep each of several values is quoted, those of ``choice(…)`` in any case.
    """
    key, equals, value = argument.partition("=")
    if not value.isascii() and (values := _several(value, multirun)):
        return f"{key}={','.join(map(_quoted, values))}"
    if not equals or value[:1] in "'\"[{$":
        return argument
    if key.lstrip("+") in LISTS and "," in value:
        return f"{key}=[{','.join(word.strip() for word in value.split(',') if word.strip())}]"
    if not value.isascii():
        return f"{key}={_quoted(value)}"
    return argument


def _quoted(text: str) -> str:
    if text[:1] in ("'", '"', "[", "{", "$") or text.isascii():
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _several(value: str, multirun: bool) -> list[str]:
    """The values of a sweep, parted at commas outside of quotes and brackets; none where it is one value."""
    if value.startswith("choice(") and value.endswith(")"):
        value = value.removeprefix("choice(").removesuffix(")")
    elif not multirun:
        return []
    parts, depth, quote = [""], 0, ""
    for before, character in zip(" " + value, value, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if len(parts) > 1 and all(map(str.strip, parts)) else []


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
    if group in PLUGINS:
        return _bad_plugin(group, str(override.value()))
    if group not in groups() or override.type == OverrideType.DEL:
        return None
    value = override.value()
    if isinstance(value, Glob):
        return None
    values = override.sweep_string_iterator() if override.is_sweep_override() else [value]
    for value in values:
        if isinstance(value, (dict, list)) or (value is not None and str(value) not in options(group)):
            return missing_option(group, _shown(value), ON_THE_COMMAND_LINE)
    return None


def _bad_plugin(group: str, option: str) -> Problem | None:
    known = {*PLUGINS[group], "basic"}
    if option not in known:
        close = nearest(option, known)
        hint = f"did you mean {group}={close}? " if close else ""
        return Problem(group, f"no option {option!r}", ON_THE_COMMAND_LINE, f"{hint}there are {_listed(known)}")
    extra = PLUGINS[group].get(option)
    if extra and not _installed(PLUGIN_MODULES[extra]):
        what = f"{option} needs a plugin of Hydra's that is not installed"
        return Problem(group, what, ON_THE_COMMAND_LINE, install_command(extra))
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing_option(group: str, option: str, where: str) -> Problem:
    """The problem of an option that does not exist, with the nearest that does."""
    what, there = f"no option {option!r}", _listed(options(group))
    path, key = option.removesuffix(".yaml").removesuffix(".yml"), option.partition(":")[0].partition("=")[0]
    name = path.rpartition("/")[2]
    if any((root / group / f"{name}.yml").is_file() for root in conf_dirs()):
        return Problem(
            group, f"conf/{group}/{name}.yml is not read", where, f"call it {name}.yaml, then {group}={name}"
        )
    if option != path and name in options(group):
        return Problem(group, what, where, f"did you mean {group}={name}?")
    if re.search("[:=]", option) and key.isidentifier():
        value = re.split("[:=]", option, maxsplit=1)[1].strip()
        return Problem(group, what, where, f"did you mean {group}.{key}={value}?")
    close = nearest(path, options(group))
    hint = f"did you mean {group}={close}? " if close else ""
    return Problem(group, what, where, f"{hint}there are {there}" if there else "there are none")


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names))


def _shown(value: object) -> str:
    return ",".join(f"{k}:{v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


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


def _intervals(overrides: Sequence[Override]) -> Iterator[Problem]:
    """Hydra's own sweeper cannot draw from an interval."""
    lines = [override.input_line or "" for override in overrides]
    if any(line.startswith("hydra/sweeper=") and "basic" not in line for line in lines):
        return
    for override in overrides:
        if override.is_sweep_override() and isinstance(override.value(), IntervalSweep):
            what = "an interval, which only a search draws values from"
            yield Problem(override.key_or_group, what, ON_THE_COMMAND_LINE, "hydra/sweeper=search")


def _unreadable(argument: str) -> Problem:
    if "=" not in argument:
        return no_assignment(argument, STAGE_WORDS)
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if not re.fullmatch(r"[~\w./@-]+", name):
        return Problem(name, "is no key: a key is words with dots", ON_THE_COMMAND_LINE, "sft.packing=false")
    if value.rstrip().endswith(","):
        what, cure = "ends with a comma", f"{name}={value.rstrip().rstrip(',')}"
    elif value[:1] in "[{" or value[-1:] in "]}":
        what, cure = f"cannot be read: {value}", "brackets in pairs, and a blank after each colon: '{a: 1}', '[1, 2]'"
    elif "'" not in value:
        what, cure = f"cannot be read: {value}", f"quotes inside quotes: \"{name}='{value}'\""
    else:
        escaped = value.replace("'", "\\'") if value.count("'") % 2 else value.strip("'")
        what, cure = f"cannot be read: {value}", f"quotes inside quotes: {name}=\"'{escaped}'\""
    return Problem(name, what, ON_THE_COMMAND_LINE, cure)
