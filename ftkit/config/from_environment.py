"""Values that come from environment variables, ``${oc.env:HF_TOKEN}``: used, and never written down.

Files, records and jobs get the text that names the variable. Only the workspace's names, which are no secrets, are
written as they are: a job has no variables of the machine that submits it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from ftkit.errors import ConfigError, Problem
from ftkit.records import flat

WRITTEN = ("workspace.",)
"""Begin keys whose values are written as they are."""
_BEGIN, _END = "Xftkit0begin0", "0end0ftkitX"
"""Around the name of a variable in place of its value: letters alone, which every resolver takes."""
_MARK = re.compile(f"{_BEGIN}(.*?){_END}")
_NAMED = re.compile(r"\$\{oc\.env:([^},]+)\}")


def texts_of(resolve: Callable[[], dict[str, Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """For each dotted key whose value comes from an environment variable, the same with the variable's name.

    Args:
        resolve: resolves the configuration; what differs when variables have other values comes from them.
        values: what it gives.
    """

    def marked(name: str, default: Any = oc.env) -> Any:
        if name in os.environ:
            return f"{_BEGIN}{name}{_END}"
        return oc.env(name) if default is oc.env else oc.env(name, default)

    OmegaConf.register_new_resolver("oc.env", marked, replace=True)
    try:
        other = dict(flat(resolve()))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return {
        key: _each_text(other.get(key), lambda text: _MARK.sub(r"${oc.env:\1}", text))
        for key, value in flat(values)
        if other.get(key) != value and not key.startswith(WRITTEN)
    }


def read_again(key: str, text: Any, where: str) -> Any:
    """The value of a text with the names of variables.

    Raises:
        ConfigError: a variable is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            what = f"comes from the environment variable {name}, which is not set"
            raise ConfigError([Problem(key, what, where, f"export {name}=…")])
        return os.environ[name]

    return _each_text(text, lambda part: _NAMED.sub(value_of, part))


def typed(value: Any, text: Any) -> str:
    """How a value is got back from its text: as it is, or read as YAML where it was decoded."""
    return "text" if type(value) is type(text) else "yaml"


def decoded(value: Any, how: str) -> Any:
    return yaml.safe_load(value) if how == "yaml" and isinstance(value, str) else value


def told_apart(value: Any, text: Any) -> str:
    """What a record has for a value: its text, and enough of a digest to see that another one is used."""
    return f"{text} ({hashlib.sha256(repr(value).encode()).hexdigest()[:8]})"


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return value
