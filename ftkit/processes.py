"""A process that may be one of several that train together: which it is, and how it ends."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn


def first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def one_of_several() -> bool:
    """Whether torchrun or Azure ML has started other processes beside this one for the same training."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def runs_since(pid: int, moment: float) -> bool:
    """Whether a process runs and began before a moment, in seconds since 1970.

    A number is given again, in a container that was started again nearly always to the same program.
    """
    import psutil

    try:
        return psutil.Process(pid).create_time() < moment + 2  # Linux knows its start in whole seconds
    except psutil.AccessDenied:
        return True
    except (psutil.Error, OverflowError, ValueError):
        return False


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that this process may still take, within the limits of the control groups (v2) that it is in."""
    import psutil

    free, root = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    with suppress(OSError, StopIteration):  # not Linux, or none of version 2
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = root / next(line for line in lines if line.startswith("0::")).removeprefix("0::").lstrip("/")
        for group in (own, *own.parents[: len(own.parts) - len(root.parts)]):
            with suppress(OSError, ValueError):  # no limit, or none of its own
                free = min(free, _left_in(group))
    return free


def _left_in(group: Path) -> int:
    """Bytes that a control group may take beside what it cannot give back: the page cache it can."""
    limit = int((group / "memory.max").read_text(encoding="utf-8"))
    used = int((group / "memory.current").read_text(encoding="utf-8"))
    lines = (line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    held = {name: int(count) for name, count in lines}
    return limit - used + held["file"] - held["shmem"]


def threads_each(processes: int) -> dict[str, str]:
    """Environment of several processes on this machine: the cores shared out among them, where the user has not said.

    torchrun says 1, with which a checkpoint of 20 billion parameters takes minutes to unpack on the CPU.
    """
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))}


def wait_passively() -> None:
    """Have the threads of torch's kernels sleep while they wait for each other, where the user has not said.

    They spin otherwise, and on a machine whose cores are busy each wait lasts until the system takes the core away.
    Libraries read this as they are loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def passing_on_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whoever ends this process means the one that it waits for, which may save first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within the block SIGTERM interrupts as Ctrl-C does, so that what was begun is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TooLongError(Exception):
    """A block of ``within`` took longer than it may."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End a block of Python that runs longer; in the main thread alone, where Python takes signals.

    Windows has no such signal: there a block takes its time.

    Raises:
        TooLongError: it ran longer.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError(f"it takes more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextmanager
def keeping_ctrl_c() -> Iterator[None]:
    """Send a Ctrl-C again that fell into a callback or a ``__del__``, where Python drops what is raised.

    Imports run such callbacks by the thousand, so that a Ctrl-C at the beginning of a stage was lost now and then.
    None is sent once this has ended: it would kill a process that winds down already, and take its exit status.
    """
    pending: list[threading.Timer] = []

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(dropped)
            return
        again = threading.Timer(0.1, _interrupt_main_thread)  # when the callback has returned
        again.daemon = True
        again.start()
        pending.append(again)

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for again in pending:
            again.cancel()


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows: a call that waits there sees it when it returns
        _thread.interrupt_main()


def end_now(status: int) -> NoReturn:
    """End this process with a status, and leave out what the interpreter would wind down.

    Threads of a process group that torch has already destroyed now and then abort a process during that ("terminate
    called without an active exception"), and whoever started it would take a finished training for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
