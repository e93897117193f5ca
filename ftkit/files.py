"""Writing files so that nothing half-written is ever taken for whole, and telling files apart by digest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ftkit.errors import StageError


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write a file or folder to; it becomes ``target`` when the block ends well.

    An existing target is replaced only then. On an error the half-written one is removed.

    Raises:
        StageError: the disk is full, or the place cannot be written; names the path and the free space.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        yield aside
        if aside.is_dir() and target.exists():
            _remove(target)
        aside.replace(target)
    except OSError as error:
        raise explained(error, target) from error
    finally:
        with suppress(OSError):
            _remove(aside)


def explained(error: OSError, path: Path) -> StageError:
    """An operating-system error on writing ``path`` in the user's terms."""
    where = str(error.filename or path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StageError(
            f"the disk is full: {free_gib(path):.2f} GiB are free",
            where=where,
            cure="free some space, or run.outputs=<a larger disk>",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return StageError(f"cannot be written: {error.strerror}", where=where, cure="run.outputs=<a folder of yours>")
    return StageError(f"{error.strerror or error}", where=where)


def free_gib(path: Path) -> float:
    """Free space in GiB on the disk that holds ``path``, or its nearest existing parent."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free / 2**30


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their relative POSIX path, sorted."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def tree_digest(folder: Path, besides: Collection[str] = ()) -> str:
    """One digest for a folder: of its files' relative paths and contents, ``besides`` some relative paths."""
    joined = "\n".join(f"{name} {sha256(path)}" for name, path in tree(folder).items() if name not in besides)
    return hashlib.sha256(joined.encode()).hexdigest()


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, none if it is not there; the last may be cut off where its writer was killed."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                return


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def linked_copy(source: Path, target: Path) -> None:
    """Give a file a second name on the same disk; copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
