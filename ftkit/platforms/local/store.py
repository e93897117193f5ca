"""The local platform's store: immutable versions of data and models, in ``<store>/<kind>/<name>/<version>/``.

A version is written aside and gets its name once, under a number that none has had; its digest is that of its content.
A model's weights are no copy: they share blocks with the merged model's, or are the same file, made read-only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ftkit import files
from ftkit.digests import Digests
from ftkit.errors import StageError
from ftkit.files import copy_tree, tree, tree_digest, written_once
from ftkit.locks import FILE as LOCK
from ftkit.locks import locked, locked_if_free
from ftkit.platforms.base import Asset, Say

KINDS = ("data", "models")
DESCRIPTION = "asset.json"
CONTENT = "content"
WEIGHTS = (".safetensors", ".gguf")
"""A model's files that are not copied but share with the merged model: 13 GB for a 20B."""
CARD = "README.md"
"""Tells about a model; content that differs in nothing else is the same version."""


def register(
    store: Path, kind: str, name: str, content: Path, digest: str, *, type: str, tags: Mapping[str, Any], wait: Say
) -> tuple[Asset, bool]:
    """Keep a copy of a folder as a new version, or find the version that holds the same content already.

    A version whose content is gone or changed does not count; it is left as it is, and named.

    Args:
        digest: of the content, without its card.
        wait: is told that another command is at work on the same asset, and of versions that are broken.

    Returns:
        The version, and whether it is new.

    Raises:
        StageError: the content is not what its digest says, or the store cannot be written.
    """
    home = store / kind / name
    with locked(home, f"{'publishing' if kind == 'data' else 'registering'} {name}", wait=wait):
        for same in [asset for asset in _readable(home) if asset.digest == digest][::-1]:
            if is_whole(Path(same.path), digest):
                return same, False
            wait(f"{same.id} holds the same no longer: {same.path} is gone or changed; making a new version")
        while True:
            try:
                return _keep(home, kind, content, digest, type, tags), True
            except FileExistsError:
                continue  # somebody on a network folder that knows no locks took the number


def _keep(home: Path, kind: str, content: Path, digest: str, type: str, tags: Mapping[str, Any]) -> Asset:
    version = str(max(_numbers(home), default=0) + 1)
    texts = {key: str(value) for key, value in tags.items()}
    asset = Asset(kind, home.name, version, type, digest, texts, str(home / version / CONTENT))
    with written_once(home / version) as aside:
        if _copied(content, aside / CONTENT, WEIGHTS if kind == "models" else ()) != digest:
            raise StageError(
                "was changed since its stage had made it",
                where=str(content),
                cure="stage=prepare,publish" if kind == "data" else "stage=merge,register",
            )
        (aside / DESCRIPTION).write_text(json.dumps(asdict(asset), ensure_ascii=False, indent=2), encoding="utf-8")
    return asset


def _copied(content: Path, copy: Path, linked: Collection[str]) -> str:
    """Copy content for good; its digest.

    What shares with its source has the digest of that, if it was not written to meanwhile; all else is read.
    """
    weights = {path: _identity(path) for path in tree(content).values() if path.suffix in linked}
    digests = Digests(content.parent)(weights)
    shared = copy_tree(content, copy, linked)
    _make_read_only(copy)
    same = {ours: digests[path] for ours, path in shared.items() if weights.get(path) == _identity(path)}

    def found(paths: Collection[Path]) -> dict[Path, str]:
        return same | Digests(copy.parent)([path for path in paths if path not in same])

    return tree_digest(copy, besides=(CARD,), digests=found)


def _identity(path: Path) -> tuple[int, int, int]:
    """What a second name leaves as it is, and a write does not."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def get(store: Path, kind: str, name: str, version: str) -> Asset:
    """One version.

    Raises:
        StageError: there is none, or its content was changed since it was registered.
    """
    home = store / kind / name
    again = "stage=publish force=true" if kind == "data" else "stage=register force=true"
    if not is_kept(home / version):
        raise StageError(f"there is no version {version} of {name}", where=str(home), cure=again)
    path = home / version / DESCRIPTION
    try:
        asset = _read(path)
    except (OSError, ValueError, RecursionError) as error:
        why = "; ".join(str(error).split("\n")[:2])
        raise StageError(f"{name}:{version} cannot be read: {why}", where=str(path), cure=again) from error
    check_whole(Path(asset.path), asset.digest, asset.id, again)
    return asset


def check_whole(content: Path, digest: str, what: str, cure: str) -> None:
    """Raises StageError: the content of a version is gone or changed."""
    if not is_whole(content, digest):
        raise StageError(f"{what} is gone or was changed after it was kept", where=str(content), cure=cure)


def is_whole(content: Path, digest: str) -> bool:
    """Whether the content of a version is what it was; it is read only where its files may have changed."""
    try:
        return content.is_dir() and _digest(content) == digest
    except OSError:
        return False


def remove_left_behind(store: Path) -> list[Path]:
    """Remove versions that killed commands were writing; those of commands under way stay."""
    left = []
    for lock in (path for kind in KINDS for path in store.glob(f"{kind}/*/{LOCK}")):
        with locked_if_free(lock.parent) as alone:
            left += files.remove_left_behind(lock.parent) if alone else []
    return left


def is_kept(version: Path) -> bool:
    """Whether a folder holds a version, not just the number of one that was removed."""
    return version.is_dir() and any(version.iterdir())


def empty(version: Path) -> None:
    """Remove a version's description, then its content; the empty folder keeps the number from being given again."""
    (version / DESCRIPTION).unlink(missing_ok=True)
    for path in version.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _digest(content: Path) -> str:
    return tree_digest(content, besides=(CARD,), digests=Digests(content.parent))


def _readable(home: Path) -> list[Asset]:
    """The versions whose description can be read, oldest first."""
    assets = []
    for number in sorted(_numbers(home)):
        try:
            assets.append(_read(home / str(number) / DESCRIPTION))
        except (OSError, ValueError, RecursionError):
            continue
    return assets


def _numbers(home: Path) -> list[int]:
    """Of all versions, damaged ones as well: no number is given twice."""
    return [int(path.name) for path in home.glob("[0-9]*") if path.name.isascii() and path.name.isdecimal()]


def _read(path: Path) -> Asset:
    """A version's description.

    Raises:
        ValueError: it is none, or that of another version.
    """
    asset = TypeAdapter(Asset).validate_json(path.read_bytes())
    if asset.name != path.parents[1].name or asset.version != path.parent.name:
        raise ValueError(f"it is that of {asset.id}")
    return replace(asset, path=str(path.parent / CONTENT))


def _make_read_only(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
