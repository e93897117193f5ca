"""The user's YAML files are looked at before anything is composed of them: small, plain, and ending somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ftkit.config.option_files import display, shipped_conf, user_conf
from ftkit.config.yaml_reader import tree
from ftkit.errors import Problem

LARGEST = 1 << 20
"""Bytes of a file."""
MOST = 100_000
"""Values of a file when its anchors are written out."""


def user_files() -> list[Path]:
    """Option files that did not come with ftkit."""
    own = user_conf()
    return sorted({*(own.rglob("*.yaml") if own else ()), *(shipped_conf() / "local").glob("*.yaml")})


def endless_files() -> list[Problem]:
    """The user's files that would take all time or memory: for each what is wrong."""
    return [problem for path in user_files() if (problem := _problem(path))]


def _problem(path: Path) -> Problem | None:
    """What is wrong with a file's size; whatever else is wrong is told when it is read."""
    where = display(path)
    try:
        if path.stat().st_size > LARGEST:
            return Problem("YAML size", f"holds more than {LARGEST >> 20} MiB", where, "settings alone belong there")
        node = tree(path.read_text(encoding="utf-8-sig"))
        values = _size(node, set(), {}) if node else 0
    except RecursionError:
        return Problem("YAML size", "is nested without an end, or deeper than can be read", where, "write it out flat")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if values > MOST:
        what = f"holds {values:,} values, its anchors written out; at most {MOST:,} are taken"
        return Problem("YAML size", what, where, "fewer anchors within anchors")
    return None


def _size(node: Any, within: set[int], known: dict[int, int]) -> int:
    """Values of a node; its anchors count as often as they are used.

    Raises:
        RecursionError: it holds itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in within:
        raise RecursionError
    within.add(id(node))
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(part, within, known) for part in parts)
    within.remove(id(node))
    return known[id(node)]
