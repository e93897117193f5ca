"""A process that may be one of several that train together: which it is, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


def first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def one_of_several() -> bool:
    """Whether torchrun or Azure ML has started other processes beside this one for the same training."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(processes: int) -> dict[str, str]:
    """Environment of several processes on this machine: the cores shared out among them, where the user has not said.

    torchrun says 1, with which a checkpoint of 20 billion parameters takes minutes to unpack on the CPU.
    """
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))}


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


def keep_ctrl_c() -> None:
    """Send a Ctrl-C again that fell into a callback or a ``__del__``, where Python drops what is raised.

    Imports run such callbacks by the thousand, so that a Ctrl-C at the beginning of a stage was lost now and then.
    """

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(dropped)
            return
        arguments = (threading.main_thread().ident, signal.SIGINT)
        again = threading.Timer(0.1, signal.pthread_kill, arguments)  # when the callback has returned
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def end_now(status: int) -> NoReturn:
    """End this process with a status, and leave out what the interpreter would wind down.

    Threads of a process group that torch has already destroyed now and then abort a process during that ("terminate
    called without an active exception"), and whoever started it would take a finished training for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
