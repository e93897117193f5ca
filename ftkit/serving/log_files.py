"""The log of a server that goes on for months: it is cut when it gets long, and its last part is kept beside it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

VARIABLE = "FTKIT_LOG"
"""Environment variable with the log's path; the server appends to it by a descriptor of its own."""
LONGEST = 10 * 2**20
"""Bytes of a log before it is cut."""


def rotate(path: str, longest: int = LONGEST) -> bool:
    """Copy a log that has become too long to ``<log>.1`` and empty it; whether that was done.

    What is written between copy and cut is lost. Several processes may call this at a time.
    """
    import fcntl  # the server's system has it; that of who reads this module need not

    if not path:
        return False
    with suppress(OSError):
        if Path(path).stat().st_size <= longest:
            return False
        with Path(path).open("r+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(log.fileno()).st_size <= longest:
                return False
            with Path(f"{path}.1").open("wb") as kept:
                shutil.copyfileobj(log, kept)
            log.truncate(0)
            return True
    return False
