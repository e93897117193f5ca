"""Sweeps: what their runs are called, and what a native sweep of Azure ML runs over."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ftkit.config.option_files import groups
from ftkit.config.overrides import ON_THE_COMMAND_LINE, CommandLine
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME
from ftkit.errors import ConfigError, Problem

LONGEST_NAME = 200
LONGEST_FIGURE = 8
"""Characters of a number in a run's name; a search draws longer ones."""
UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")


def run_name(base: str, swept: Sequence[tuple[str, str]]) -> str:
    """The name of one run of a sweep, ``tiny-lora.r=4``; two runs never share one.

    A name that cannot hold the values as they were typed ends in a digest of them.

    Args:
        base: name of the run that is swept over.
        swept: keys and values as typed.
    """
    if not swept:
        return base
    typed = ",".join(f"{key}={value}" for key, value in swept)
    name = UNSAFE.sub("_", f"{base}-" + ",".join(f"{key}={_shortened(value)}" for key, value in swept))
    if name == f"{base}-{typed}" and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(typed.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9].rstrip('_')}-{digest}"


def _shortened(value: str) -> str:
    try:
        return value if len(value) <= LONGEST_FIGURE else f"{float(value):.4g}"
    except ValueError:
        return value


def sweep_problems(command_line: CommandLine) -> Iterator[Problem]:
    """What is wrong with a sweep as a whole."""
    for override in command_line.overrides:
        if not override.is_sweep_override() or not override.is_discrete_sweep():
            continue
        times = Counter(override.sweep_string_iterator())
        for value in (value for value, count in times.items() if count > 1):
            what = f"{value} comes {times[value]} times: the runs would share a folder"
            yield Problem(override.key_or_group, what, ON_THE_COMMAND_LINE, "name each value once")
    searches = any(override.key_or_group.startswith("hydra") for override in command_line.overrides)
    if not command_line.swept() and not searches and not command_line.problems:
        yield Problem("-m", "nothing is swept", ON_THE_COMMAND_LINE, "lora.r=8,16 sweeps; without -m it is one run")


def native_space(base: Config, command_line: CommandLine) -> dict[str, list[str]]:
    """Values by dotted key, as typed.

    Args:
        base: configuration of any of the combinations.
        command_line: with the swept overrides.

    Raises:
        ConfigError: a stage does not run in a job, options of a group are swept, or nothing is.
    """
    swept = [override for override in command_line.overrides if override.is_sweep_override()]
    problems = [
        Problem("stage", f"{name} runs in no job, so a native sweep cannot run it", ON_THE_COMMAND_LINE, "stage=train")
        for name in base.stages
        if name not in BY_NAME or not BY_NAME[name].runs_as_job(base)
    ]
    problems += [
        Problem(
            override.key_or_group,
            "a native sweep takes values, not options of a group",
            ON_THE_COMMAND_LINE,
            "compute.sweep=launcher hydra/launcher=azureml",
        )
        for override in swept
        if override.key_or_group in groups()
    ]
    if not swept:
        problems.append(Problem("-m", "nothing is swept", ON_THE_COMMAND_LINE, "lora.r=8,16"))
    if problems:
        raise ConfigError(problems)
    return {override.key_or_group: list(map(str, override.sweep_string_iterator())) for override in swept}
