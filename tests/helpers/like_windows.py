"""Python on Linux without what Windows lacks, for processes of a test; a file ``sitecustomize.py`` runs this text.

What Windows has in place of ``flock`` stands in: a lock of some bytes of a file.
"""

import asyncio  # noqa: F401 that of Linux, which asks sysconf from Python 3.12 on; that of Windows has no need to
import errno
import os
import signal
import sys
import types
from importlib.machinery import BuiltinImporter, PathFinder

import psutil  # noqa: F401 that of Linux, which wants resource; Windows' wants nothing

MISSING = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")
CALLS = ("getuid", "geteuid", "getgid", "getsid", "setsid", "getpgid", "killpg", "sched_getaffinity", "sysconf", "fork")
SIGNALS = ("SIGALRM", "SIGKILL", "SIGHUP", "SIGUSR1", "pthread_kill", "pthread_sigmask", "setitimer", "pause")


def _without_missing(find_spec):
    """A finder's method that finds no module that Windows lacks."""
    return lambda name, path=None, target=None: None if name in MISSING else find_spec(name, path, target)


_gave_up = []


def _locking(file, mode, count):
    """``msvcrt.locking``, which gives up waiting after some seconds; here the first time at once."""
    if mode == LOCKS["LK_LOCK"] and not _gave_up:
        _gave_up.append(file)
        raise OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))
    try:
        os.lockf(file, os.F_LOCK if mode == LOCKS["LK_LOCK"] else os.F_TLOCK, count)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error


LOCKS = {"LK_LOCK": 1, "LK_NBLCK": 2}
for _finder in (BuiltinImporter, PathFinder):
    _finder.find_spec = _without_missing(_finder.find_spec)
for _name in MISSING:
    sys.modules.pop(_name, None)
for _module, _names in ((os, CALLS), (signal, SIGNALS)):
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
import subprocess  # noqa: E402, F401 it would take itself to be on Windows afterwards

sys.modules["msvcrt"] = types.ModuleType("msvcrt")
vars(sys.modules["msvcrt"]).update(locking=_locking, **LOCKS)
