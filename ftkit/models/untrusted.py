"""What a checkpoint of strangers may not do: run code, name files outside of its folder, blow up what it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit.console import console, printable
from ftkit.errors import StageError
from ftkit.files import check_links, is_below
from ftkit.processes import first_process
from ftkit.translation import said

ANOTHER = "model.pretrained_model_name_or_path=<another folder or hub id>"
LARGEST_JSON = 16 << 20
"""Bytes of a configuration or an index; the published ones hold some kilobytes."""
LARGEST_GROWTH = 32
"""How many times longer a normalizer may make a text; NFKC makes one character 18."""

_said: set[str] = set()


def check_folder(folder: Path) -> None:
    """See that a model's folder holds nothing that leads out of it, and no index that is none.

    Raises:
        StageError: a link or a name in an index leads out of it, or a file is not what its name says.
    """
    check_links(folder)
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("tokenizer.") or path.name == "vocab.json":
            continue
        loaded = _json(path)
        if path.name.endswith(".index.json"):
            _check_index(path, loaded)


def _json(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > LARGEST_JSON:
        raise StageError(f"holds more than {LARGEST_JSON >> 20} MiB", where=str(path), cure=ANOTHER)
    try:
        loaded = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise StageError(f"is not JSON: {why}", where=str(path), cure="download the model again") from error
    if not isinstance(loaded, dict):
        raise StageError(f"holds a {type(loaded).__name__}, not an object", where=str(path), cure=ANOTHER)
    return loaded


def _check_index(path: Path, loaded: Mapping[str, Any]) -> None:
    names = loaded.get("weight_map")
    if not isinstance(names, dict):
        raise StageError("weight_map is not an object of names", where=str(path), cure="download the model again")
    for tensor, name in names.items():
        if not isinstance(name, str) or not is_below(name) or "/" in name or "\\" in name:
            raise StageError(
                f"weight_map has {tensor} in {str(name)[:80]!r}, which is no file of this folder",
                where=str(path),
                cure="the name of a file beside it",
            )


def say_what_is_not_run(wanted: Any, where: str) -> None:
    """Tell once that a checkpoint brings code of its own; its architecture is known, so that it does without."""
    if wanted and where not in _said and first_process():
        _said.add(where)
        line = f"{where} brings code of its own (auto_map); it is not run"
        console().print(f"{'':13}{printable(said(line))}", markup=False)


def check_normalizer(backend: Any, where: str) -> None:
    """See that a tokenizer cannot blow up what it reads.

    Raises:
        StageError: its normalizer may make a text more than ``LARGEST_GROWTH`` times longer.
    """
    if backend.normalizer is None:
        return
    growth = _growth(json.loads(backend.normalizer.__getstate__()))
    if growth > LARGEST_GROWTH:
        raise StageError(
            f"the tokenizer's normalizer may make a text {growth:,.0f} times longer", where=where, cure=ANOTHER
        )


def _growth(normalizer: Mapping[str, Any]) -> float:
    """How many times longer a normalizer may make a text."""
    kind = normalizer.get("type")
    if kind == "Sequence":
        growth = 1.0
        for each in normalizer["normalizers"]:
            growth = min(growth * _growth(each), 1e12)
        return growth
    if kind == "Replace":
        pattern, content = normalizer["pattern"], normalizer["content"]
        shortest = len(pattern["String"]) if "String" in pattern else 0
        return max(1.0, len(content) / shortest if shortest else len(content) + 1.0)
    if kind == "Prepend":
        return len(normalizer["prepend"]) + 1.0
    return 18.0 if kind in ("NFKC", "NFKD") else 4.0 if kind in ("NFD", "NFC", "ByteLevel", "BertNormalizer") else 3.0
