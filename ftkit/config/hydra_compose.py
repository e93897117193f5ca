"""Hydra's composition, and what ftkit adds: deployment follows compute; a named option wins over the experiment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftkit.config import endpoint_names, from_environment
from ftkit.config.compute import COMPUTES
from ftkit.config.groups import GROUPS
from ftkit.config.hydra_source import register_search_path
from ftkit.config.methods import METHODS
from ftkit.config.option_files import (
    GLOBAL,
    display,
    includes_itself,
    option_file,
    options,
    place_of_key,
    shipped_conf,
    with_parents,
)
from ftkit.config.overrides import key_of, missing_option
from ftkit.config.words import ON_THE_COMMAND_LINE
from ftkit.config.yaml_limits import endless_files
from ftkit.config.yaml_reader import key_lines, package_of, read_yaml
from ftkit.errors import ConfigError, Problem, nearest

KINDS: tuple[tuple[str, Mapping[str, Any], str], ...] = (("compute", COMPUTES, "platform"), ("method", METHODS, "name"))
"""Groups whose keys go by a kind: the kinds, and the key that tells which it is."""
FOLLOWS = {"local": ("managed", "local"), "slurm": ("managed", "local"), "azureml": ("local", "managed")}
"""For compute's platform: the deployment option that does not fit it, and the one that takes its place."""


@dataclass(frozen=True)
class Composed:
    """A composition.

    Attributes:
        config: all of it, interpolations unresolved.
        values: ftkit's part as plain containers, interpolations resolved.
        choices: the option of each group.
        named: groups whose option was named on the command line.
        missing: dotted keys that are still ``???``.
        texts: of values that come from environment variables, by dotted key.
    """

    config: DictConfig
    values: dict[str, Any]
    choices: dict[str, str | None]
    named: set[str]
    missing: list[str]
    texts: dict[str, Any]

    def place_of(self, key: str) -> str | None:
        """File and line that a key's value comes from; of a whole group, its option's file."""
        option = self.choices.get(key) if key in GROUPS else None
        if option and (path := option_file(key, option)):
            return display(path)
        return place_of_key(key, self.choices, self.named)


def compose_overrides(arguments: Sequence[str]) -> Composed:
    """Compose what Hydra overrides ask for.

    Raises:
        ConfigError: an option, a file or an interpolation cannot be read; names file and line.
    """
    if problems := endless_files():
        raise ConfigError(problems)
    register_search_path()
    endpoint_names.register()
    typed = {key_of(argument) for argument in arguments}
    named = typed & set(GROUPS)
    composed = _following(list(arguments), typed)
    choices = dict(composed.hydra.runtime.choices)
    if found := list(_other_kinds_than_the_options(composed, choices, typed)):
        raise ConfigError(found)
    _let_named_options_win(composed, choices, typed)
    _leave_out_other_kinds(composed, choices, typed)
    if found := list(_left_over(composed)):
        raise ConfigError(found)
    ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in ("hydra", *GLOBAL)])
    try:
        values = _resolved(ours)
        texts = from_environment.texts_of(lambda: _resolved(ours), values)
    except OmegaConfBaseException as error:
        raise ConfigError([_bad_interpolation(error, ours, choices, named, typed)]) from error
    missing = [str(key) for key in OmegaConf.missing_keys(ours)]
    return Composed(ours, values, choices, named, missing, texts)


def _resolved(ours: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(ours, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _following(arguments: list[str], typed: set[str]) -> DictConfig:
    """Compose; a deployment that nobody has named on the command line follows compute's platform."""
    composed = _composed(arguments)
    platform = composed.compute.get("platform") if isinstance(composed.get("compute"), DictConfig) else None
    wrong, right = FOLLOWS.get(str(platform), ("", ""))
    if composed.hydra.runtime.choices.get("deployment") == wrong and "deployment" not in typed:
        return _composed([*arguments, f"deployment={right}"])
    return composed


def _composed(arguments: list[str]) -> DictConfig:
    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(shipped_conf())):
            composed = compose("config", overrides=arguments, return_hydra_config=True)
    except RecursionError as error:
        raise ConfigError([_circle(arguments)]) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([_composition_problem(error, arguments)]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([Problem("conf", str(error).splitlines()[0], "conf", "mend that file")]) from error
    finally:
        restore_gh_from_backup(backup)
    OmegaConf.set_struct(composed, False)
    return composed


def _let_named_options_win(composed: DictConfig, choices: dict[str, str | None], typed: set[str]) -> None:
    """Give a named option's own keys back the values that the experiment has replaced, unless they were typed."""
    above = set(_keys_set_by("experiment", choices.get("experiment")))
    local = set(_keys_set_by("local", choices.get("local@_global_")))
    for group in sorted(typed & set(GROUPS)):
        option = choices.get(group)
        path = option_file(group, option) if option else None
        if path is None:
            continue
        prefix = "" if package_of(path) == "_global_" else f"{group}."
        own = OmegaConf.to_container(read_yaml(path, display(path)))
        for key, value in _leaves(own, prefix):
            kept = local | (typed - set(GROUPS))
            if any(_related(key, other) for other in above) and not any(_related(key, k) for k in kept):
                OmegaConf.update(composed, key, value, merge=False)


def _keys_set_by(group: str, option: str | None) -> Iterator[str]:
    for path in with_parents(group, option):
        found = {keys for keys in key_lines(path) if keys[0] != "defaults"}
        yield from (".".join(k) for k in found if not any(o[: len(k)] == k and o != k for o in found))


def _leaves(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key == "defaults" and not prefix.count(".") > 1:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _related(one: str, other: str) -> bool:
    """Whether two keys are the same, or one lies below the other; a group's own name counts as no key."""
    return one == other or (one.startswith(other + ".") and other not in GROUPS) or other.startswith(one + ".")


def _other_kinds_than_the_options(
    composed: DictConfig, choices: dict[str, str | None], typed: set[str]
) -> Iterator[Problem]:
    """A kind that was typed, ``compute.platform=local``, beside an option that holds the keys of another."""
    for group, kinds, told_by in KINDS:
        values, key = composed.get(group), f"{group}.{told_by}"
        if key not in typed or not isinstance(values, DictConfig) or (kind := str(values.get(told_by))) not in kinds:
            continue
        files = (read_yaml(path, display(path)) for path in with_parents(group, choices.get(group)))
        of_option = next((str(found[told_by]) for found in files if told_by in found), kind)
        if of_option != kind:
            cure = f"{group}={getattr(kinds[kind], 'option', kind)}"
            what = f"{kind}, and {group}={choices.get(group)} has the keys of {of_option}"
            yield Problem(key, what, ON_THE_COMMAND_LINE, cure)


def _leave_out_other_kinds(composed: DictConfig, choices: dict[str, str | None], typed: set[str]) -> None:
    """Drop keys that an experiment or conf/local sets for a platform or a method that another choice has replaced."""
    for group, kinds, told_by in KINDS:
        values = composed.get(group)
        kind = kinds.get(str(values.get(told_by))) if isinstance(values, DictConfig) else None
        if kind is None:
            continue
        foreign = {name for other in kinds.values() for name in other.model_fields} - set(kind.model_fields)
        own = {keys for path in with_parents(group, choices.get(group)) for keys in key_lines(path)}
        for name in foreign & {str(key) for key in values}:
            if f"{group}.{name}" not in typed and (name,) not in own:
                del values[name]


def _left_over(composed: DictConfig) -> Iterator[Problem]:
    for group in GLOBAL:
        for key, _ in _leaves(composed.get(group) or {}, f"{group}."):
            cure = f"{group}={key.split('.')[1]}" if key.split(".")[1] in options(group) else "the key itself"
            yield Problem(key, f"{group} names a file, and holds no keys", ON_THE_COMMAND_LINE, cure)


def _circle(arguments: Sequence[str]) -> Problem:
    pairs = [argument.lstrip("+").partition("=")[::2] for argument in arguments]
    for group, option in [*pairs, ("local", "default")]:
        if path := includes_itself(group, option):
            line = key_lines(path).get(("defaults",), 1)
            cure = "name another option in defaults, or give this file another name"
            return Problem(group, "the file includes itself by its defaults", f"{display(path)}:{line}", cure)
    return Problem("defaults", "files include each other without end", "conf", "mend the defaults lists")


_MISSING = re.compile(r"Could not (?:find|load) '(?P<group>[^']+)/(?P<option>[^'/]+)'")
_IN_FILE = re.compile(r"In '(?P<file>[^']+)'")
_NO_MATCH = re.compile(r"Could not override '(?P<key>[^'@]+)")


def _composition_problem(error: Exception, arguments: Sequence[str]) -> Problem:
    text = str(error)
    source = _IN_FILE.search(text)
    path = option_file(*source["file"].rpartition("/")[::2]) if source else None
    where = f"{display(path)}:{key_lines(path).get(('defaults',), 1)}" if path else ON_THE_COMMAND_LINE
    if found := _MISSING.search(text):
        return missing_option(found["group"], found["option"], where)
    if found := _NO_MATCH.search(text):
        return Problem(found["key"].strip(), "no such group", where, "python -m ftkit lists the groups")
    key = str(getattr(error, "full_key", None) or "configuration")
    typed = next((a for a in arguments if key_of(a) == key), None)
    what = (text.splitlines() or ["cannot be composed"])[0]
    return Problem(key, what, where if path or typed else "conf", "")


_UNKNOWN = re.compile(r"Interpolation key '(?P<key>[^']+)' not found")
_VARIABLE = re.compile(r"Environment variable '(?P<name>[^']+)' not found")


def _bad_interpolation(
    error: Exception, ours: DictConfig, choices: dict[str, str | None], named: set[str], typed: set[str]
) -> Problem:
    text = str(error)
    key = str(getattr(error, "full_key", None) or "configuration")
    where = ON_THE_COMMAND_LINE if key in typed else place_of_key(key, choices, named) or "conf"
    if found := _VARIABLE.search(text):
        name = found["name"]
        cure = f"export {name}=…, or ${{oc.env:{name},null}}"
        return Problem(key, f"the environment variable {name} is not set", where, cure)
    if found := _UNKNOWN.search(text):
        known = [name for name, _ in _leaves(OmegaConf.to_container(ours), "")]
        close = nearest(found["key"], known)
        cure = f"did you mean ${{{close}}}?" if close else "${model.name} takes another key's value"
        return Problem(key, f"takes the value of {found['key']}, and there is no such key", where, cure)
    what = (text.splitlines() or ["cannot be read"])[0]
    return Problem(key, what, where, "${model.name} takes another key's value")
