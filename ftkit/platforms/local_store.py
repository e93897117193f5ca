"""The local platform's store: immutable versions of data and models, in ``<store>/<kind>/<name>/<version>/``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit.errors import StageError
from ftkit.files import tree_digest, written_aside
from ftkit.platforms import Asset

DESCRIPTION = "asset.json"
CONTENT = "content"
CARD = "README.md"
"""Tells about a model; content that differs in nothing else is the same version."""


def register(
    store: Path, kind: str, name: str, content: Path, *, type: str, tags: Mapping[str, Any]
) -> tuple[Asset, bool]:
    """Keep a copy of a folder as a new version, or find the version that holds the same content already.

    Returns:
        The version, and whether it is new.

    Raises:
        StageError: ``content`` is no folder, or the store cannot be written.
    """
    if not content.is_dir():
        raise StageError("there is no such folder to register", where=str(content))
    digest = tree_digest(content, besides=(CARD,))
    versions = list_versions(store, kind, name)
    if same := [asset for asset in versions if asset.digest == digest]:
        return same[-1], False
    version = str(max((int(asset.version) for asset in versions), default=0) + 1)
    folder = store / kind / name / version
    with written_aside(folder) as aside:
        shutil.copytree(content, aside / CONTENT)
        described = Asset(
            kind, name, version, type, digest, {k: str(v) for k, v in tags.items()}, str(folder / CONTENT)
        )
        (aside / DESCRIPTION).write_text(json.dumps(asdict(described), ensure_ascii=False, indent=2), encoding="utf-8")
        _make_read_only(aside / CONTENT)
    return described, True


def list_versions(store: Path, kind: str, name: str) -> list[Asset]:
    """All versions of an asset, oldest first."""
    found = (store / kind / name).glob(f"[0-9]*/{DESCRIPTION}")
    assets = [Asset(**json.loads(path.read_text(encoding="utf-8"))) for path in found]
    return sorted(assets, key=lambda asset: int(asset.version))


def get(store: Path, kind: str, name: str, version: str) -> Asset:
    """One version.

    Raises:
        StageError: there is none, or its content was changed since it was registered.
    """
    asset = next((a for a in list_versions(store, kind, name) if a.version == version), None)
    if asset is None:
        raise StageError(
            f"no version {version} of {name}", where=str(store / kind / name), cure="stage=publish or stage=register"
        )
    if tree_digest(Path(asset.path), besides=(CARD,)) != asset.digest:
        raise StageError(
            f"{asset.id} was changed after it was registered",
            where=asset.path,
            cure="force=true registers a new version",
        )
    return asset


def _make_read_only(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
