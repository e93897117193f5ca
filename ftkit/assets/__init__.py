"""What ships inside the package: the tiny model and the sample rows, named ``package:<name>`` in the configuration."""

from __future__ import annotations

import difflib
from pathlib import Path

from ftkit.errors import StageError

FOLDER = Path(__file__).resolve().parent
PREFIX = "package:"


def asset_path(reference: str) -> str:
    """The path of ``package:<name>``; any other reference (a hub id, a path) is returned unchanged.

    Raises:
        StageError: no asset has that name.
    """
    if not reference.startswith(PREFIX):
        return reference
    name = reference.removeprefix(PREFIX)
    path = FOLDER / name
    if not name or not path.exists():
        there = sorted(p.name for p in FOLDER.iterdir() if not p.name.startswith("_"))
        close = difflib.get_close_matches(name, there, n=1) or there
        raise StageError(
            f"nothing named {name!r} ships with ftkit", where=reference, cure=f"{PREFIX}{', '.join(close)}"
        )
    return str(path)
