"""The processes that a test's own has started."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil


def running_below(process: psutil.Process, word: str) -> list[psutil.Process]:
    """Those of all generations whose command line has the word in one of its arguments.

    Processes come and go meanwhile: one that has ended, waited for or not, is none of them.
    """
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if any(word in argument for argument in child.cmdline()) else []
    return found


def doubles(process: psutil.Process) -> list[psutil.Process]:
    """Those that stand for vLLM."""
    return running_below(process, "vllm_double.py")


def gone(process: psutil.Process) -> None:
    """Wait for the end of a process."""
    until = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until


def belonging(folder: Path) -> list[psutil.Process]:
    """The processes of the endpoints whose state lies in a folder, whoever has started them."""
    found = []
    for process in psutil.process_iter(["environ"]):
        with suppress(psutil.NoSuchProcess):
            mine = str(folder) in (process.info["environ"] or {}).get("AML_APP_ROOT", "")
            found += [process] if mine and process.status() != psutil.STATUS_ZOMBIE else []
    return found
