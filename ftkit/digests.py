"""Digests of files, remembered with each file's state, so that 40 GB are read once and not at every command.

A file is not read again while its size, inode and both its times are what they were: whatever writes to a file sets the
time of its last change, which no program can set otherwise. A file that was changed within ``SETTLED_S`` before it
was read is not remembered, for a further change might bear the same time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ftkit.errors import StageError
from ftkit.files import sha256, written_aside
from ftkit.processes import usable_cores

MEMORY = ".digests.json"
SETTLED_S = 2.0
"""The coarsest clock of a file system, FAT's."""
READERS = 8
"""Files that are read at a time."""


class Digests:
    """SHA-256 of files below a folder, remembered in ``.digests.json`` in it.

    Args:
        folder: that the files lie in; paths are remembered relative to it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = folder / MEMORY
        self._known = _read(self._file)

    def __call__(self, paths: Collection[Path]) -> dict[Path, str]:
        """The digest of each file; those that may have changed are read, and remembered.

        Raises:
            OSError: one cannot be read.
        """
        unknown = {path: _state(path) for path in paths if self._remembered(path) is None}
        began = time.time()
        with ThreadPoolExecutor(min(READERS, usable_cores())) as readers:
            read = dict(zip(unknown, readers.map(sha256, unknown), strict=True))
        settled = {
            self._name(path): [*state, read[path]]
            for path, state in unknown.items()
            if state[2] / 1e9 < began - SETTLED_S and _state(path) == state
        }
        if settled:
            self._known |= settled
            self._keep()
        return {path: read[path] if path in read else self._known[self._name(path)][-1] for path in paths}

    def _remembered(self, path: Path) -> str | None:
        known = self._known.get(self._name(path))
        return known[-1] if known and known[:-1] == _state(path) else None

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self._folder)).as_posix()

    def _keep(self) -> None:
        kept = {name: known for name, known in self._known.items() if (self._folder / name).exists()}
        try:
            with written_aside(self._file) as aside:
                aside.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
        except StageError:
            return  # a folder that is not ours to write: they are read again


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(file: Path) -> dict[str, list]:
    try:
        return dict(_entries(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError):
        return {}


def _entries(loaded: object) -> Iterator[tuple[str, list]]:
    for name, known in loaded.items() if isinstance(loaded, dict) else ():
        if isinstance(known, list) and len(known) == 5 and isinstance(known[-1], str):
            yield name, known
