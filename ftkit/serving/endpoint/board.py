"""What the front processes of one endpoint have in common: how its vLLM is, and how many requests they have in hand.

It is a folder of locks, which the system gives back when their holder ends, however that comes, and a page of memory.
Every process that gunicorn's master has started finds it by that master.
"""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ftkit.chat.messages import ModelError
from ftkit.file_locks import take

STARTING, FAILED, ENDED_TOO_OFTEN = 1, 2, 3
"""States of vLLM beside 0, not begun: begun; not started, for a reason; ended too often to go on."""
FOLDERS = "ftkit-fronts-"
"""How the names of the folders begin."""
SLOTS = 64
"""Front processes at a time, those that take another's place included."""
_STATE, _PORT, _IS_OPEN, _ENGINE, _ENGINE_BEGAN, _WERE_COMPLETE, _TOLD, _IN_HAND = range(8)
_HERE = _IN_HAND + SLOTS
_BYTES = 8 * (_HERE + SLOTS)


def began(pid: int) -> int:
    """When a running process began, in the system's ticks; 0 for one that there is not. Linux alone tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def own_master() -> int:
    """gunicorn's master, which has forked this process.

    Raises:
        ModelError: it is gone, and another process has taken its children on.
    """
    parent = os.getppid()
    try:
        is_alike = Path(f"/proc/{parent}/exe").readlink() == Path("/proc/self/exe").readlink()
    except OSError:  # another user's
        is_alike = False
    if not is_alike or os.getpgid(parent) != os.getpgrp():
        raise ModelError("gunicorn's master is gone, or this process was not forked by one")
    return parent


def folder_of(master: int) -> Path:
    """The folder of the processes that gunicorn's master has started."""
    return Path(tempfile.gettempdir(), f"{FOLDERS}{master}-{began(master)}")


class Board:
    """The state that they share.

    Args:
        folder: is made if it is not there; on a file system of this machine.

    Raises:
        ModelError: it belongs to another user.
    """

    def __init__(self, folder: Path):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ModelError(f"{folder} belongs to somebody else: delete it, or set TMPDIR to a folder of your own")
        self.folder = folder
        with (folder / "board").open("a+b") as file:
            os.ftruncate(file.fileno(), _BYTES)
            self.words: Any = memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("q")
        self.threads = threading.Lock()

    @property
    def state(self) -> int:
        return self.words[_STATE]

    @property
    def port(self) -> int:
        """Of the vLLM that answers; 0 while there is none."""
        return self.words[_PORT]

    @port.setter
    def port(self, value: int) -> None:
        self.words[_PORT] = value

    @property
    def is_open(self) -> bool:
        """Whether the vLLM was seen to answer as it should: whoever comes later need not try it."""
        return bool(self.words[_IS_OPEN])

    def open(self) -> None:
        self.words[_IS_OPEN] = 1

    @property
    def reason(self) -> str:
        """Why vLLM has not started."""
        return (self.folder / "reason").read_text(encoding="utf-8")

    def begin(self) -> None:
        """vLLM is about to be started."""
        self.port, self.words[_TOLD] = 0, 0
        self.words[_STATE] = STARTING

    def give_up(self, state: int, reason: str = "") -> None:
        """vLLM is not started again; processes that come now begin as the first ones did."""
        (self.folder / "reason").write_text(reason, encoding="utf-8")
        self.port, self.words[_IS_OPEN] = 0, 0
        self.words[_STATE] = state

    def is_mine_to_tell(self) -> bool:
        """Whether nobody has told the reason yet: whoever asks first is to do so."""
        with self.alone():
            was, self.words[_TOLD] = self.words[_TOLD], 1
        return not was

    @property
    def engine(self) -> tuple[int, int]:
        """The process of vLLM that was started last, and when it began."""
        return self.words[_ENGINE], self.words[_ENGINE_BEGAN]

    @engine.setter
    def engine(self, pid: int) -> None:
        self.words[_ENGINE], self.words[_ENGINE_BEGAN] = pid, began(pid)

    def lock(self, name: str) -> IO[bytes] | None:
        """One of the locks, held as long as the file is open; None if another process holds it."""
        file = (self.folder / name).open("ab")
        if take(file):
            return file
        file.close()
        return None

    def is_held(self, name: str) -> bool:
        """Whether a process holds a lock."""
        file = self.lock(name)
        if file:
            file.close()
        return file is None

    def touch(self) -> None:
        """Let whoever clears up the temporary directory see that it is in use: a lock that is deleted holds nobody."""
        for path in (self.folder, *self.folder.iterdir()):
            os.utime(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else, of this process or another one, is in such a block."""
        with self.threads, (self.folder / "mutex").open("ab") as file:
            take(file, wait=True)
            yield


class OwnPlaces:
    """Places for requests in hand in one process."""

    were_complete = True

    def __init__(self, capacity: int):
        self._capacity, self._lock, self.in_hand = capacity, threading.Lock(), 0

    def take(self) -> bool:
        with self._lock:
            is_free = self.in_hand < self._capacity
            self.in_hand += is_free
        return is_free

    def give(self) -> None:
        with self._lock:
            self.in_hand -= 1

    def is_here(self) -> None: ...


class Places:
    """Places for requests in hand, so many for all front processes together; one that is killed gives its own back.

    Args:
        capacity: how many there are.
        fronts: how many processes there are to be.

    Raises:
        ModelError: there are too many processes.
    """

    def __init__(self, board: Board, capacity: int, fronts: int):
        self._board, self._capacity, self._fronts = board, capacity, fronts
        self._words: Any = board.words
        with board.alone():
            held = ((slot, board.lock(f"front-{slot}")) for slot in range(SLOTS))
            found = next(((slot, lock) for slot, lock in held if lock), None)
            if found is None:
                raise ModelError(f"more than {SLOTS} processes serve at a time")
            self._slot, self._lock = found
            self._words[_IN_HAND + self._slot] = self._words[_HERE + self._slot] = 0

    @property
    def in_hand(self) -> int:
        """Of all processes."""
        return sum(self._words[_IN_HAND:_HERE])

    def take(self) -> bool:
        """Take a place; whether there was one."""
        with self._board.alone():
            is_free = self.in_hand < self._capacity or self._give_back_of_the_dead()
            if is_free:
                self._words[_IN_HAND + self._slot] += 1
        return is_free

    def give(self) -> None:
        """Give one back."""
        with self._board.threads:
            self._words[_IN_HAND + self._slot] -= 1

    def _give_back_of_the_dead(self) -> bool:
        for slot in range(SLOTS):
            if slot != self._slot and self._words[_IN_HAND + slot] and not self._board.is_held(f"front-{slot}"):
                self._words[_IN_HAND + slot] = 0
        return self.in_hand < self._capacity

    def is_here(self) -> None:
        """This process is ready."""
        self._words[_HERE + self._slot] = 1
        if sum(self._words[_HERE:]) >= self._fronts:
            self._words[_WERE_COMPLETE] = 1

    @property
    def were_complete(self) -> bool:
        """Whether all processes have been ready; one that is replaced does not count, since the others answer."""
        return bool(self._words[_WERE_COMPLETE])
