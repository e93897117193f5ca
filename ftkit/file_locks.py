"""A lock on an open file, which the system gives back when its holder ends: by ``flock``, or by Windows' own call."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from typing import IO, Any

FAR_BEHIND = 2**30
"""The byte that stands for the file on Windows, where nobody else may read what is locked."""
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What Windows says of a locked byte: at once, or after ten seconds of waiting."""


def take(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file that this process has not locked yet; whether that was done.

    Args:
        wait: until nobody else holds it.

    Raises:
        OSError: its file system has no locks.
    """
    return _take_on_windows(file, wait) if find_spec("fcntl") is None else _take_by_flock(file, wait)


def _take_by_flock(file: IO[Any], wait: bool) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_on_windows(file: IO[Any], wait: bool) -> bool:
    import msvcrt

    windows: Any = msvcrt
    here = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), FAR_BEHIND, os.SEEK_SET)
    try:
        while True:
            try:
                windows.locking(file.fileno(), windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
            except OSError as error:
                if error.errno not in HELD_BY_ANOTHER:
                    raise
                if not wait:
                    return False
            else:
                return True
    finally:
        os.lseek(file.fileno(), here, os.SEEK_SET)
