"""Flags before Hydra sees them: it knows none of ours, and answers a mistake with its own usage."""

from __future__ import annotations

from collections.abc import Sequence

from ftkit.config.words import ON_THE_COMMAND_LINE
from ftkit.errors import ConfigError, Problem, nearest

HYDRA_ONLY = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc")
LONG = {
    "-h": "--help",
    "-m": "--multirun",
    "-c": "--cfg",
    "-p": "--package",
    "-r": "--run",
    "-i": "--info",
    "-sc": "--shell-completion",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
}
TAKE_A_VALUE = ("--cfg", "--package", "--config-dir", "--config-path", "--config-name")
CONFIGURATIONS = ("job", "hydra", "all")
OTHER_WAYS = {
    "--config-name": "experiment=mine, with the file conf/experiment/mine.yaml",
    "--config-path": "a folder conf/ where you start ftkit is read by itself",
    "--config-dir": "a folder conf/ where you start ftkit is read by itself",
    "--experimental-rerun": "--resolved outputs/<run>/config.yaml",
}
KNOWN = ("--help", "--version", "--resolved", "--multirun", "--cfg", "--resolve", "--package", *HYDRA_ONLY[:2], "--run")


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Flags by their long name with their values, and the overrides.

    Raises:
        ConfigError: a flag is not known, lacks its value, or would not do here what it does for Hydra.
    """
    flags: dict[str, str] = {}
    overrides: list[str] = []
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, equals, value = word.partition("=")
        name = LONG.get(name, name)
        if name in TAKE_A_VALUE and not equals:
            value = rest.pop(0) if rest and "=" not in rest[0] else ""
        if name in OTHER_WAYS:
            problems.append(Problem(name, "is a flag of Hydra's that ftkit leaves out", ON_THE_COMMAND_LINE,
                                    OTHER_WAYS[name]))  # fmt: skip
        elif name not in KNOWN and name not in LONG.values():
            close = nearest(name, (*KNOWN, "-m"))
            cure = f"did you mean {close}?" if close else "python -m ftkit --help lists the flags"
            problems.append(Problem(name, "no such flag", ON_THE_COMMAND_LINE, cure))
        elif name == "--cfg" and value not in CONFIGURATIONS:
            problems.append(Problem(name, f"{value!r} is not one of {', '.join(CONFIGURATIONS)}", ON_THE_COMMAND_LINE,
                                    "--cfg job"))  # fmt: skip
        flags[name] = value
    if problems:
        raise ConfigError(problems)
    return flags, overrides
