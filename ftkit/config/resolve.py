"""Overrides in, typed configuration out; every problem found on the way is reported at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftkit.config.checks import all_checks
from ftkit.config.overrides import ON_THE_COMMAND_LINE, CommandLine, missing_option, read
from ftkit.config.problems import UNKNOWN_KEY, schema_problems
from ftkit.config.schema import Config
from ftkit.config.sources import display, file_that_sets, register_search_path, shipped_conf
from ftkit.errors import ConfigError, Problem


def resolve(arguments: Sequence[str]) -> Config:
    """Compose and check one configuration.

    Args:
        arguments: overrides as typed, ``["experiment=tiny", "lora.r=4"]``.

    Raises:
        ConfigError: with every problem of the command line, the schema and the checks across groups.
    """
    command_line = read(arguments, multirun=False)
    config, problems = _resolve_one(command_line, command_line.arguments)
    return _with_overrides(_or_raise(config, [*command_line.problems, *problems]), arguments)


def check_sweep(command_line: CommandLine) -> None:
    """Check every combination of a sweep before the first of them starts.

    Raises:
        ConfigError: with the problems of all combinations, each once.
    """
    problems = list(command_line.problems)
    for arguments in command_line.combinations():
        problems += _resolve_one(command_line, arguments)[1]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def load_frozen(path: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration that an earlier command resolved and wrote as YAML.

    Args:
        path: of the file.
        changes: values by dotted key that replace those in it.

    Raises:
        ConfigError: when the file is missing or does not fit this version's schema.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError([Problem("--resolved", f"cannot be read: {error}", str(path))]) from error
    for key, value in (changes or {}).items():
        *groups, name = key.split(".")
        reduce(lambda within, group: within[group], groups, values)[name] = value
    config, problems = _validate(values)
    return _or_raise(config, [replace(problem, where=display(path)) for problem in problems])


def freeze(config: Config, path: Path) -> None:
    """Write a resolved configuration for workers and jobs to start from."""
    text = yaml.safe_dump(config.model_dump(), allow_unicode=True, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def from_composed(composed: DictConfig) -> Config:
    """The typed configuration of one run of a sweep, as Hydra hands it to the task."""
    return _or_raise(*_validate(_plain(composed)))


def _or_raise(config: Config | None, problems: Sequence[Problem]) -> Config:
    if problems or config is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _resolve_one(command_line: CommandLine, arguments: list[str]) -> tuple[Config | None, list[Problem]]:
    register_search_path()
    try:
        composed = _compose(arguments)
        choices = dict(composed.hydra.runtime.choices)
        values = _plain(composed)
    except (HydraException, OmegaConfBaseException) as error:
        return None, [_composition_problem(error)]
    except yaml.MarkedYAMLError as error:
        return None, [_yaml_problem(error)]
    missing = [str(key) for key in OmegaConf.missing_keys(composed) if not str(key).startswith("hydra.")]
    config, problems = _validate(values, missing)
    if problems:
        problems = _with_examples_and_checks(command_line, arguments, problems)
    located = [_located(problem, choices, command_line.keys) for problem in problems]
    return config, sorted(located, key=lambda problem: _position(problem, arguments))


def _with_examples_and_checks(
    command_line: CommandLine, arguments: list[str], problems: list[Problem]
) -> list[Problem]:
    """Put back what the faulty overrides replaced: gives an example for each and lets the other checks run."""
    faulty = {problem.key for problem in problems}
    kept = [a for a in arguments if not any(_concerns(a.lstrip("+").partition("=")[0], key) for key in faulty)]
    try:
        composed = _compose(kept)
        sound = _plain(composed)
    except (HydraException, OmegaConfBaseException):
        return problems
    problems = [_with_example(problem, OmegaConf.select(composed, problem.key)) for problem in problems]
    config, _ = schema_problems(sound)
    known = {problem.key for problem in problems}
    return problems + [p for p in (all_checks(config) if config else ()) if p.key not in known]


def _with_example(problem: Problem, value: Any) -> Problem:
    if problem.cure or value is None or isinstance(value, (DictConfig, ListConfig)):
        return problem
    shown = str(value).lower() if isinstance(value, bool) else value
    return replace(problem, cure=f"for instance {problem.key}={shown}")


def _concerns(typed: str, key: str) -> bool:
    return typed == key or typed.startswith(key + ".") or key.startswith(typed + ".")


def _position(problem: Problem, arguments: list[str]) -> int:
    typed = [argument.lstrip("+").partition("=")[0] for argument in arguments]
    return next((i for i, key in enumerate(typed) if _concerns(key, problem.key)), len(typed))


def _compose(arguments: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(shipped_conf())):
        return compose("config", overrides=arguments, return_hydra_config=True)


def _plain(composed: DictConfig) -> dict[str, Any]:
    ours = OmegaConf.masked_copy(
        composed, [str(key) for key in composed if key not in ("hydra", "experiment", "local")]
    )
    values = OmegaConf.to_container(ours, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _validate(values: dict[str, Any], missing: Sequence[str] = ()) -> tuple[Config | None, list[Problem]]:
    """Schema first; the checks across groups run on what the schema accepts."""
    problems = [_unset(key) for key in missing]
    config, found = schema_problems(values, skip=missing)
    problems += found
    if config is None or problems:
        return None, problems
    problems = list(all_checks(config))
    return (None if problems else config), problems


def _unset(key: str) -> Problem:
    return Problem(key, "has no value yet", "", f"set it: {key}=…")


def _located(problem: Problem, choices: dict[str, str], typed: set[str]) -> Problem:
    if problem.where:
        return problem
    if any(problem.key == key or problem.key.startswith(key + ".") for key in typed):
        return replace(problem, where=ON_THE_COMMAND_LINE)
    if below := [key for key in typed if key.startswith(problem.key + ".")]:
        key = below[0] if problem.what == UNKNOWN_KEY else problem.key
        return replace(problem, key=key, where=ON_THE_COMMAND_LINE)
    path = file_that_sets(problem.key, choices)
    return replace(problem, where=display(path) if path else "conf")


_MISSING = re.compile(r"Could not (?:find|load) '(?P<group>[^'/]+)/(?P<option>[^']+)'")
_IN_FILE = re.compile(r"In '(?P<file>[^']+)'")


def _composition_problem(error: Exception) -> Problem:
    text = str(error)
    if found := _MISSING.search(text):
        source = _IN_FILE.search(text)
        where = f"conf/{source['file']}.yaml" if source else ON_THE_COMMAND_LINE
        return missing_option(found["group"], found["option"], where)
    key = getattr(error, "full_key", None) or "configuration"
    return Problem(str(key), text.splitlines()[0], "conf")


def _yaml_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark
    where = f"{mark.name}:{mark.line + 1}" if mark else "conf"
    return Problem("YAML", str(error.problem or error), where, "mend the file's syntax at that line")


def named_after_overrides(config: Config, overrides: Sequence[str], left_out: Collection[str]) -> Config:
    """One run of a sweep: ``tiny`` becomes ``tiny-lora.r=4`` and builds on the records of ``tiny``.

    Args:
        config: the run's configuration.
        overrides: all overrides of the run, as Hydra lists them.
        left_out: keys that are the same in every run, and so do not belong in the name.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    suffix = ",".join(f"{key}={value}" for key, _, value in pairs if key not in left_out)
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", f"{config.run.name}-{suffix}")[:200] if suffix else config.run.name
    run = config.run.model_copy(update={"name": name, "base": config.run.base or config.run.name})
    return _with_overrides(config.model_copy(update={"run": run}), overrides)


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """What the run was started with, kept for ``stage=report``."""
    run = config.run.model_copy(update={"overrides": list(overrides)})
    return config.model_copy(update={"run": run})
