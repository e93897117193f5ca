"""The processes that a test's own has started."""

from __future__ import annotations

from contextlib import suppress

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
