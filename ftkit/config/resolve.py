"""Overrides in, typed configuration out; every problem found on the way is reported at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ftkit.config import checkpoint, from_environment, mixes
from ftkit.config.checks import all_checks
from ftkit.config.examples import example
from ftkit.config.groups import GROUPS
from ftkit.config.hydra_compose import Composed, compose_overrides
from ftkit.config.option_files import display
from ftkit.config.overrides import CommandLine, key_of, read
from ftkit.config.problems import UNKNOWN_KEY, partly_typed, schema_problems
from ftkit.config.schema import Config
from ftkit.config.start import go_on_from
from ftkit.config.sweeps import run_name, sweep_problems
from ftkit.config.words import ON_THE_COMMAND_LINE
from ftkit.errors import ConfigError, Problem
from ftkit.records import flat

FROM_ENVIRONMENT = "from_environment"
"""In a frozen configuration: the keys whose values name environment variables."""


def resolve(arguments: Sequence[str]) -> Config:
    """Compose and check one configuration.

    Args:
        arguments: overrides as typed, ``["experiment=tiny", "lora.r=4"]``.

    Raises:
        ConfigError: with every problem of the command line, the schema and the checks across groups.
    """
    command_line = read(arguments, multirun=False)
    config, problems = _resolve_one(command_line, command_line.arguments)
    return _with_overrides(_or_raise(config, [*command_line.problems, *problems]), command_line.arguments)


def check_sweep(command_line: CommandLine) -> None:
    """Check every combination of a sweep before the first of them starts.

    Raises:
        ConfigError: with the problems of all combinations, each once; nothing is swept, or a run would come twice.
    """
    problems = [*command_line.problems, *sweep_problems(command_line)]
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
    cure = "--resolved outputs/<run>/config.yaml, as an earlier command has written it"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError([Problem("--resolved", f"cannot be read: {why}", str(path), cure)]) from error
    if not isinstance(values, dict) or not isinstance(values.get(FROM_ENVIRONMENT, {}), dict):
        raise ConfigError([Problem("--resolved", "is no configuration that ftkit has written", str(path), cure)])
    texts = _put_back(values, display(path))
    for key, value in (changes or {}).items():
        _set(values, key, value)
        texts.pop(key, None)
    problems = checkpoint.complete(values)
    config, found = schema_problems(values, skip=[problem.key for problem in problems])
    problems += found
    if config and not problems:
        config._from_environment = dict(texts)
        problems = list(all_checks(config))
    return _or_raise(config, [replace(problem, where=display(path)) for problem in problems])


def _put_back(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Give values that come from environment variables what these hold now; returns their texts, by dotted key."""
    texts = {}
    for key, how in values.pop(FROM_ENVIRONMENT, {}).items():
        text = dict(flat(values)).get(key)
        _set(values, key, from_environment.decoded(from_environment.read_again(key, text, where), how))
        texts[key] = text
    return texts


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    within = reduce(lambda within, group: within.get(group) if isinstance(within, dict) else None, groups, values)
    if isinstance(within, dict):
        within[name] = value  # what is no group is told by the schema


def freeze(config: Config, path: Path) -> None:
    """Write a resolved configuration for workers and jobs to start from, for its owner to read alone.

    What comes from environment variables is written by their names.
    """
    values = config.model_dump()
    known = dict(flat(values))
    for key, text in config.from_environment.items():
        _set(values, key, text)
    if config.from_environment:
        values[FROM_ENVIRONMENT] = {
            key: from_environment.typed(known[key], text) for key, text in config.from_environment.items()
        }
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _or_raise(config: Config | None, problems: Sequence[Problem]) -> Config:
    if problems or config is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _resolve_one(command_line: CommandLine, arguments: list[str]) -> tuple[Config | None, list[Problem]]:
    try:
        composed = compose_overrides(arguments)
    except ConfigError as error:
        return None, list(error.problems)
    left_out = {problem.key for problem in command_line.problems}
    of_sources = mixes.complete(composed.values)
    missing = [key for key in composed.missing if key != "dataset.path" or composed.values["dataset"]["path"]]
    unset = [key for key in missing if not _any_concerns(left_out, key)]
    problems = [Problem(key, "has no value yet", "", f"set it: {key}=…") for key in unset]
    if composed.values.pop("job", None) is not None:
        problems.append(Problem("job", "is set by ftkit, inside of a job", "", "leave it out"))
    problems += of_sources
    problems += go_on_from(composed.values)
    problems += checkpoint.complete(composed.values)
    config, found = schema_problems(composed.values, skip=[*missing, *(problem.key for problem in problems)])
    if config:
        config._from_environment = dict(composed.texts)
    problems += _without_followers(found, composed)
    if problems:
        problems = [example(problem, composed) for problem in problems]
    if not left_out & {"experiment", "local"}:
        problems += _checked(config, composed, {*left_out, *(problem.key for problem in problems)})
    located = [_located(problem, composed, command_line.keys) for problem in problems]
    return None if problems else config, sorted(located, key=lambda problem: _position(problem, arguments))


def _checked(config: Config | None, composed: Composed, faulty: Collection[str]) -> list[Problem]:
    """Problems across groups; a group that is faulty itself is not judged."""
    if config and not faulty:
        return list(all_checks(config))
    groups = {key.partition(".")[0] for key in faulty}
    return [p for p in all_checks(partly_typed(composed.values, groups)) if p.key not in faulty]


def _without_followers(problems: Iterable[Problem], composed: Composed) -> list[Problem]:
    """Without values that only repeat another faulty one, as registration.model_name repeats run.name."""
    problems = list(problems)
    keys = [problem.key for problem in problems]
    raw = {key: OmegaConf.to_container(composed.config).get(key.split(".")[0]) for key in keys}  # pyright: ignore

    def follows(problem: Problem) -> bool:
        value = reduce(lambda v, k: v.get(k) if isinstance(v, dict) else None, problem.key.split(".")[1:],
                       raw[problem.key])  # fmt: skip
        return isinstance(value, str) and any(f"${{{key}}}" in value for key in keys if key != problem.key)

    return [problem for problem in problems if not follows(problem)]


def _any_concerns(keys: Iterable[str], key: str) -> bool:
    return any(_concerns(other, key) for other in keys)


def _concerns(typed: str, key: str) -> bool:
    return typed == key or typed.startswith(key + ".") or key.startswith(typed + ".")


def _position(problem: Problem, arguments: list[str]) -> int:
    typed = [key_of(argument) for argument in arguments]
    return next((i for i, key in enumerate(typed) if _concerns(key, problem.key)), len(typed))


def _located(problem: Problem, composed: Composed, typed: set[str]) -> Problem:
    """With the place of the key: typed, or file and line."""
    if problem.where:
        return problem
    values = typed - set(GROUPS)
    if any(problem.key == key or problem.key.startswith(key + ".") for key in values):
        return replace(problem, where=ON_THE_COMMAND_LINE)
    if below := [key for key in values if key.startswith(problem.key + ".")]:
        key = below[0] if problem.what == UNKNOWN_KEY else problem.key
        return replace(problem, key=key, where=ON_THE_COMMAND_LINE)
    if place := composed.place_of(problem.key):
        return replace(problem, where=place)
    return replace(problem, where=ON_THE_COMMAND_LINE if problem.key in typed else "conf")


def named_after_overrides(config: Config, overrides: Sequence[str], left_out: Collection[str]) -> Config:
    """One run of a sweep: ``tiny`` becomes ``tiny-lora.r=4`` and builds on the records of ``tiny``.

    Args:
        config: the run's configuration.
        overrides: all overrides of the run, as Hydra lists them.
        left_out: keys that are the same in every run, and so do not belong in the name.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    name = run_name(config.run.name, [(key, value) for key, _, value in pairs if key not in left_out])
    run = config.run.model_copy(update={"name": name, "base": config.run.base or config.run.name})
    return _with_overrides(config.model_copy(update={"run": run}), overrides)


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """What the run was started with, kept for ``stage=report``."""
    job = config.job.model_copy(update={"overrides": list(overrides)})
    return config.model_copy(update={"job": job})
