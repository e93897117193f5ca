"""Checkpoints that are either whole or known not to be.

A checkpoint counts only with ``complete.json`` in it, which names every file with size and digest and is written after
all of them lie on the disk. What has none, or other sizes, was cut off; one that training goes on from is read as well.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftkit.digests import Digests
from ftkit.files import explained, longest_file, tree, written_aside

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Bring every file to the disk, then write the marker."""
    files = {name: path for name, path in tree(checkpoint).items() if name != MARKER}
    for path in files.values():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    digests = Digests(checkpoint.parent)(files.values())
    marked = {name: [path.stat().st_size, digests[path]] for name, path in files.items()}
    with written_aside(checkpoint / MARKER) as aside:
        aside.write_text(json.dumps({"step": step_of(checkpoint), "files": marked}, indent=1), encoding="utf-8")


def is_complete(checkpoint: Path, *, read: bool = False) -> bool:
    """Whether every file is there, whole.

    Args:
        read: whether their digests are compared as well, not their sizes alone.
    """
    try:
        marked: dict[str, tuple[int, str]] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]
        if any((checkpoint / name).stat().st_size != size for name, (size, _) in marked.items()):
            return False
        digests = Digests(checkpoint.parent)([checkpoint / name for name in marked]) if read else {}
        return all(digests.get(checkpoint / name, digest) == digest for name, (_, digest) in marked.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which it was written."""
    match = NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def newest_complete(folder: Path, *, read: bool = False) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, or None; and those that were cut off, newest first. Changes nothing.

    Args:
        read: whether the newest has to have the digests that were written; those that have not count as cut off.
    """
    found = sorted((p for p in folder.glob("checkpoint-*") if NAME.fullmatch(p.name)), key=step_of, reverse=True)
    whole = [p for p in found if is_complete(p)]
    while read and whole and not is_complete(whole[0], read=True):
        whole = whole[1:]
    return (whole[0] if whole else None), [p for p in found if p not in whole]


def keep_newest(folder: Path, limit: int, *, best: int | None = None) -> None:
    """Delete whole checkpoints beyond the newest ``limit``, and any that were cut off before the newest.

    Args:
        best: step of a checkpoint that stays in any case.
    """
    newest, cut_off = newest_complete(folder)
    if newest is None:
        return
    whole = sorted((p for p in folder.glob("checkpoint-*") if is_complete(p)), key=step_of, reverse=True)
    old = [checkpoint for checkpoint in whole[limit:] if step_of(checkpoint) != best]
    for checkpoint in [*old, *(p for p in cut_off if step_of(p) < step_of(newest))]:
        # Without its marker first: a deletion that is cut off must not leave half a checkpoint that counts.
        (checkpoint / MARKER).unlink(missing_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)


@contextmanager
def removed_on_failure(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that cannot be written to its end, for its room may be what is missing."""
    try:
        yield
    except BaseException:
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Errors of writing ``path`` in the user's terms, whichever library they come from.

    Raises:
        StageError: the disk is full or the folder cannot be written; names the path and the free space.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise explained(error, path) from error
    except (SafetensorError, RuntimeError) as error:
        text = str(error)
        if code := re.search(r"os error (\d+)", text):
            number = int(code.group(1))
        elif re.search(r"(?i)no space left|file write failed|failed writing|inline_container|unexpected pos", text):
            number = errno.EFBIG if longest_file() else errno.ENOSPC
        else:
            raise
        raise explained(OSError(number, os.strerror(number), str(path)), path) from error
