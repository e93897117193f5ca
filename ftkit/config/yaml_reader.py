"""One YAML file of ``conf/``: its text, its keys with their lines, and what is wrong with it."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftkit.errors import ConfigError, Problem

PACKAGE_LINE = re.compile(r"#\s*@package\s+(\S+)\s*$")
FILES = 256
"""Texts that are kept as they were read: a sweep composes the same files for each of its runs."""
EAST_ASIAN = {"cp932": "Shift_JIS (CP932)", "euc_jp": "EUC-JP", "gb18030": "GB18030"}


def read_yaml(path: Path, shown: str) -> DictConfig:
    """A file's keys and values, interpolations unresolved.

    Args:
        path: of the file.
        shown: the same, as the user would write it.

    Raises:
        ConfigError: it is not UTF-8, not YAML, holds no keys, or an interpolation in it cannot be read.
    """
    text = _text(path, shown)
    try:
        root = tree(text)
        if root is None:
            return OmegaConf.create({})
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a text"
            what, cure = f"the file is {kind}, not keys with values", "lines such as sft: {learning_rate: 1.0e-4}"
            raise ConfigError([Problem("YAML", what, f"{shown}:{root.start_mark.line + 1}", cure)])
        loaded = deepcopy(_loaded(text))
    except yaml.YAMLError as error:
        raise ConfigError([_syntax(error, text, shown)]) from error
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "YAML")
        line = _lines(text).get(tuple(key.split(".")))
        what = "an interpolation that cannot be read: ${ must be closed by }"
        cure = "${model.name} takes another key's value; \\${ is the text itself"
        raise ConfigError([Problem(key, what, f"{shown}:{line}" if line else shown, cure)]) from error
    except RecursionError as error:
        raise ConfigError([Problem("YAML", "is nested too deeply", shown, "fewer levels")]) from error
    assert isinstance(loaded, DictConfig)
    return loaded


@lru_cache(FILES)
def tree(text: str) -> yaml.Node | None:
    """A YAML text's nodes, which nobody changes. Not by libyaml, which a deeply nested file crashes.

    Raises:
        YAMLError: it is none.
    """
    return yaml.compose(text, Loader=yaml.SafeLoader)


@lru_cache(FILES)
def _loaded(text: str) -> Any:
    """To be copied."""
    return OmegaConf.create(text)


def package_of(path: Path) -> str | None:
    """What the line ``# @package …`` among a file's first comments says; other comments may stand before it."""
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return None
        if found := PACKAGE_LINE.match(line.strip()):
            return found[1]
    return None


def key_lines(path: Path) -> dict[tuple[str, ...], int]:
    """Line of every key of a file, by the keys that lead to it; empty for a file that cannot be read."""
    try:
        return _lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def read_defaults(path: Path) -> list[Any]:
    """The list ``defaults`` of a file; empty where it has none, or cannot be read."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return []
    found = loaded.get("defaults") if isinstance(loaded, dict) else None
    return found if isinstance(found, list) else []


@lru_cache(FILES)
def _lines(text: str) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}

    def visit(node: yaml.Node | None, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode) and len(above) < 20:
            for key, value in node.value:
                here = (*above, str(key.value))
                found[here] = key.start_mark.line + 1
                visit(value, here)

    visit(tree(text), ())
    return found


def _text(path: Path, shown: str) -> str:
    data = path.read_bytes()
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnicodeDecodeError("utf-8", data, 0, 2, "UTF-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding, name = _likely(data)
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8{f' but probably {name}' if name else ''}"
        convert = f"iconv -f {encoding} -t UTF-8 {shown} > utf8.yaml && mv utf8.yaml {shown}" if encoding else ""
        raise ConfigError([Problem("YAML", what, f"{shown}:{line}", convert or "save it as UTF-8")]) from error


def _likely(data: bytes) -> tuple[str, str]:
    """iconv's name of the encoding that a file is probably in, and the common name."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16", "UTF-16"
    for codec, name in EAST_ASIAN.items():
        try:
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        return {"cp932": "CP932", "euc_jp": "EUC-JP", "gb18030": "GB18030"}[codec], name
    return "", ""


def _syntax(error: yaml.YAMLError, text: str, shown: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        control = next((i for i, c in enumerate(text) if ord(c) < 32 and c not in "\t\n\r"), 0)
        what = "holds a character that no text file has"
        return Problem("YAML", what, f"{shown}:{text.count(chr(10), 0, control) + 1}", "take it out")
    mark, context, problem = error.problem_mark, error.context or "", str(error.problem)
    unclosed = {"quoted": "a quotation mark", "flow mapping": "{", "flow sequence": "["}
    opened = next((sign for kind, sign in unclosed.items() if kind in context), "")
    if opened and error.context_mark:
        what, cure = f"{opened} is not closed: {problem}", "close it, or put text with such signs in quotes"
        return Problem("YAML", what, f"{shown}:{error.context_mark.line + 1}", cure)
    where = f"{shown}:{mark.line + 1}" if mark else shown
    if "\\t" in problem:
        return Problem("YAML", "a tab stands where a line is indented", where, "indent with spaces")
    if "mapping values" in problem:
        return Problem("YAML", "a second colon in one line", where, "put the text in quotes, or begin a new line")
    if problem.startswith("found duplicate key"):
        key = problem.removeprefix("found duplicate key ")
        return Problem(key, "stands twice in one mapping", where, "keep one of the two")
    return Problem("YAML", problem, where, "mend the file's syntax at that line")
