"""Checkpoints that are either whole or known not to be.

A checkpoint counts only with ``complete.json`` in it, which names every file and its size and is written after all of
them lie on the disk. What has none, or other sizes, was cut off.
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

from ftkit.files import explained, tree, written_aside

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Bring every file to the disk, then write the marker."""
    files = tree(checkpoint)
    for path in files.values():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    sizes = {name: path.stat().st_size for name, path in files.items() if name != MARKER}
    with written_aside(checkpoint / MARKER) as aside:
        aside.write_text(json.dumps({"step": step_of(checkpoint), "files": sizes}, indent=1), encoding="utf-8")


def is_complete(checkpoint: Path) -> bool:
    """Whether every file is there, whole."""
    try:
        sizes: dict[str, int] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which it was written."""
    match = NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def newest_complete(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, or None; and those that were cut off, newest first. Changes nothing."""
    found = sorted((p for p in folder.glob("checkpoint-*") if NAME.fullmatch(p.name)), key=step_of, reverse=True)
    whole = [p for p in found if is_complete(p)]
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
            number = errno.ENOSPC
        else:
            raise
        raise explained(OSError(number, os.strerror(number), str(path)), path) from error
