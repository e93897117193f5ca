"""Commands that take turns: each runs in a thread of its own, and only when it is told to, up to its next question."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_present = threading.local()


class Killed(BaseException):
    """The process is gone: nothing that it would have done happens any more."""


class Actor:
    """One command of one user.

    Attributes:
        result, error: what it ended with.
        dead: killed; every question that it still puts raises ``Killed``.
    """

    def __init__(self, user: str, work: Callable[[], Any]):
        self.user, self.result, self.error = user, None, None
        self.dead, self.interrupted, self.ended = False, False, False
        self._work = work
        self._go, self._reached = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Let it go on to its next question; whether it still runs."""
        if not self.ended:
            self._go.release()
            assert self._reached.acquire(timeout=60), "a command neither asks nor ends"
        return not self.ended

    def finish(self, most: int = 5000) -> Actor:
        for _ in range(most):
            if not self.step():
                return self
        raise AssertionError(f"a command of {self.user} does not end")

    def kill(self) -> None:
        self.dead = True
        self.finish()

    def interrupt(self) -> None:
        """Ctrl-C at its next question."""
        self.interrupted = True

    def point(self) -> None:
        self._reached.release()
        self._go.acquire()
        if self.dead:
            raise Killed
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def _run(self) -> None:
        self._go.acquire()
        _present.actor = self
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._reached.release()


def present() -> Actor | None:
    """The command whose thread this is; None in a test itself."""
    return getattr(_present, "actor", None)


def point() -> None:
    """Where another command may have its turn."""
    if actor := present():
        actor.point()
