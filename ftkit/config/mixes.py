"""The sources of ``dataset.mix``, each made whole: its own keys, those of its option, and the rest from ``dataset``."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftkit.config.dataset import Rows, key_of_source
from ftkit.config.option_files import display, options, with_parents
from ftkit.config.overrides import missing_option
from ftkit.config.yaml_reader import read_yaml
from ftkit.errors import Problem

UNSET = "???"
LAYOUT = ("columns", "turns")
"""Keys that an option gives whole."""
PLACE = ("subset", "revision", "validation")
"""Keys that go with a path, so that no source has another's."""


def complete(values: dict[str, Any]) -> list[Problem]:
    """Give each source the keys that it does not set; in place.

    A source has from its option the layout, and what else the option sets otherwise than ``dataset=jsonl`` does; the
    rest is as ``dataset`` says. A path that is not set is none beside a mix.

    Args:
        values: the composed configuration as plain containers.

    Returns:
        What is wrong: there is no such option, it cannot be read, or a source has no path.
    """
    dataset = values.get("dataset")
    if not isinstance(dataset, dict) or not isinstance(mix := dataset.get("mix"), dict):
        return []
    if dataset.get("path") == UNSET:
        dataset["path"] = None
    problems = []
    for name, given in mix.items():
        if not isinstance(given, dict):
            continue
        below = {key: dataset[key] for key in Rows.model_fields if key in dataset and key not in PLACE}
        below |= dict.fromkeys((*PLACE, "option", "weight", "rows"))
        if (option := given.get("option")) is not None:
            try:
                below |= _of_option(str(option))
            except _NoOption as error:
                problems.append(error.problem(f"{key_of_source(str(name))}.option"))
        mix[name] = _merged(below, given)
        if mix[name].get("path") is None:
            key = f"{key_of_source(str(name))}.path"
            problems.append(Problem(key, "is missing: a source has rows of its own", "", f"{key}=<its rows>"))
    return problems


class _NoOption(Exception):
    """An option that is not there, or cannot be read."""

    def __init__(self, option: str, why: str = ""):
        super().__init__(option)
        self._option, self._why = option, why

    def problem(self, key: str) -> Problem:
        if self._why:
            return Problem(key, f"conf/dataset/{self._option}.yaml: {self._why}", "", "mend that file")
        found = missing_option("dataset", self._option, "")
        return Problem(key, found.what, "", found.cure.replace("dataset=", f"{key}="))


def _of_option(option: str) -> dict[str, Any]:
    """What an option of ``dataset`` brings into a source."""
    if option not in options("dataset"):
        raise _NoOption(option)
    own, plain = _values(option), _values("jsonl")
    keys = [key for key in ("path", *Rows.model_fields) if key in own and own[key] != UNSET]
    return {key: own[key] for key in keys if key in LAYOUT or own[key] != plain.get(key)}


def _values(option: str) -> dict[str, Any]:
    """An option's keys, those of its parents included."""
    found = DictConfig({})
    for path in reversed(list(with_parents("dataset", option))):
        found = OmegaConf.merge(found, read_yaml(path, display(path)))
    try:
        values = OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        raise _NoOption(option, str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, mappings key by key; where they differ, as ``above`` says."""
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        merged[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
