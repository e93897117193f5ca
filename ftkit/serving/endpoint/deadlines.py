"""Time limits of many requests, kept by one thread: a timer of its own for each would cost a thread each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_S = 0.1
"""How often the thread looks; a limit is kept to this."""


class Deadlines:
    """Calls what is to be called when something takes too long."""

    def __init__(self) -> None:
        self._running: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock, self._added = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def within(self, seconds: float, late: Callable[[], None]) -> Iterator[None]:
        """Have ``late`` called, from another thread, if the block is not left within ``seconds``."""
        key = object()
        self._running[key] = time.monotonic() + seconds, late
        self._watch()
        try:
            yield
        finally:
            self._running.pop(key, None)

    def _watch(self) -> None:
        if self._added.is_set():
            return
        with self._lock:
            if self._thread is None:  # not before: a server may fork after it has loaded this
                self._thread = threading.Thread(target=self._look, name="deadlines", daemon=True)
                self._thread.start()
        self._added.set()

    def _look(self) -> None:
        while True:
            self._added.wait()
            time.sleep(LOOK_S)
            now = time.monotonic()
            for key, (until, late) in list(self._running.items()):
                if until < now and self._running.pop(key, None):
                    late()
            self._added.clear()
            if self._running:
                self._added.set()
