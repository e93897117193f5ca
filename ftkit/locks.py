"""One command at a time in a run folder, or at an asset of the store.

The operating system keeps the lock, on a file that its owner holds open, and gives it back when that process ends, even
by ``kill -9``. The file says who that is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from ftkit.errors import StageError
from ftkit.file_locks import take
from ftkit.files import explained

FILE = ".lock"
UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks, some network folders among them."""

_held: list[int] = []


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        does: what, ``stage=train`` say.
        pid: its process.
        host: that it runs on.
        since: when it began, local time.
    """

    does: str = "another command"
    pid: int = 0
    host: str = ""
    since: str = ""

    def __str__(self) -> str:
        return f"{self.does} (process {self.pid} on {self.host}, since {self.since})" if self.pid else self.does


@contextmanager
def locked(folder: Path, does: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a folder's lock.

    Args:
        does: what for, in the words that others are told.
        wait: is told that, and for whom, this command waits; without it nobody waits.

    Raises:
        StageError: another command holds the lock; or the folder cannot be written.
    """
    with _locked_file(folder, wait) as file:
        owner = Owner(does, os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", "seconds"))
        with suppress(OSError):  # a full disk: the lock holds without the words
            file.truncate(0)
            file.write(json.dumps(asdict(owner)) + "\n")
            file.flush()
        _held.append(file.fileno())
        try:
            yield
        finally:
            _held.remove(file.fileno())
            with suppress(OSError):
                file.truncate(0)


@contextmanager
def locked_if_free(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock if nobody else does; whether that is so."""
    with (folder / FILE).open("a+", encoding="utf-8") as file:
        try:
            taken = take(file)
        except OSError:
            taken = False
        yield taken


def descriptors() -> tuple[int, ...]:
    """Of the locks that this process holds: for a child that goes on with the work when this process is killed."""
    return tuple(_held)


@contextmanager
def _locked_file(folder: Path, wait: Callable[[str], None] | None) -> Iterator[TextIOWrapper]:
    while True:
        with _opened(folder / FILE) as first, _tried(first, folder) as (file, taken):
            if not taken:
                owner = _owner(file)
                if wait is None:
                    raise _busy(owner, folder)
                wait(f"waiting for {owner}")
                take(file, wait=True)
            if _still_there(file):
                yield file
                return


def _opened(path: Path) -> TextIOWrapper:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise explained(error, path) from error


@contextmanager
def _tried(file: TextIOWrapper, folder: Path) -> Iterator[tuple[TextIOWrapper, bool]]:
    """The file, and whether it is locked now, by this process.

    Where its file system has no locks, one among the temporary files takes its place, for this machine alone.
    """
    try:
        taken = take(file)
    except OSError as error:
        if error.errno not in UNKNOWN_HERE:
            raise explained(error, folder) from error
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else ""  # Windows' folder is the user's own
        with _opened(Path(tempfile.gettempdir(), f"ftkit-{user}-{name}.lock")) as instead:
            yield instead, take(instead)
    else:
        yield file, taken


def _still_there(file: TextIOWrapper) -> bool:
    """Whether the file that was locked is the one that others find: the folder may have been deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    except OSError:
        return False


def _owner(file: TextIOWrapper) -> Owner:
    try:
        file.seek(0)
        return Owner(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return Owner()


def _busy(owner: Owner, folder: Path) -> StageError:
    end = f", kill {owner.pid} to end it" if owner.pid and owner.host == socket.gethostname() else ""
    return StageError(
        f"{owner} is at work in this run",
        where=str(folder),
        cure=f"wait until it has ended{end}, or run.name=<another>",
    )
