"""A value that a faulty key could have: one that the schema takes, and never the faulty one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, reduce
from typing import Any

from ftkit.config.hydra_compose import Composed, compose_overrides
from ftkit.config.problems import choices_of, schema_problems
from ftkit.errors import ConfigError, Problem


def example(problem: Problem, composed: Composed) -> Problem:
    """With ``for instance key=value`` as its cure, if it has none and a value is known that fits."""
    if problem.cure:
        return problem
    for value in _candidates(problem.key):
        text = override_of(problem.key, value)
        if text and _fits(problem.key, value, composed.values):
            return replace(problem, cure=f"for instance {text}")
    return problem


def override_of(key: str, value: Any) -> str:
    """``key=value`` as a shell and Hydra take it; empty for a value that would need care."""
    if value is None or isinstance(value, bool):
        return f"{key}={'null' if value is None else str(value).lower()}"
    if isinstance(value, list) and all(re.fullmatch(r"[\w./-]+", str(item)) for item in value):
        return f"{key}=[{','.join(map(str, value))}]"
    return f"{key}={value}" if re.fullmatch(r"[\w./:+-]+", str(value)) else ""


def _candidates(key: str) -> Iterator[Any]:
    """Values of the key in ftkit's own options, then words that it takes."""
    for values in _shipped():
        found = reduce(lambda v, k: v.get(k) if isinstance(v, dict) else None, key.split("."), values)
        if found is not None:
            yield found
    yield from choices_of(key)
    yield from (True, 1, 0.5, "name", [])


@cache
def _shipped() -> list[dict[str, Any]]:
    found = []
    for arguments in ([], ["experiment=tiny"]):
        try:
            found.append(compose_overrides(arguments).values)
        except ConfigError:
            continue
    return found


def _fits(key: str, value: Any, values: dict[str, Any]) -> bool:
    whole = copy.deepcopy(values)
    *groups, name = key.split(".")
    within: Any = whole
    for group in groups:
        within = within.get(group) if isinstance(within, dict) else None
    if not isinstance(within, dict) or within.get(name) == value:
        return False
    within[name] = value
    return all(problem.key != key for problem in schema_problems(whole)[1])
