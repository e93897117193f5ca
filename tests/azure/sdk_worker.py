"""A process that speaks to the stand-in by the real SDK, for tests that call it from theirs."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a call returned or raised, and what it printed to standard output."""

    value: Any
    error: str
    message: str
    printed: str


class SdkWorker:
    """Calls functions of ``sdk_calls`` by name, in another process: the SDK is loaded there alone."""

    def __init__(self, environment: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _prepare, (dict(environment),))

    def start(self, function: str, *arguments: Any) -> Future[Outcome]:
        return self._pool.submit(_called, function, arguments)

    def attempt(self, function: str, *arguments: Any) -> Outcome:
        """Call it and wait for the outcome, good or bad."""
        return self.start(function, *arguments).result()

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Call it and return its value.

        Raises:
            AssertionError: it raised; the message has what.
        """
        outcome = self.attempt(function, *arguments)
        assert not outcome.error, f"{outcome.error}: {outcome.message}\n{outcome.printed}"
        return outcome.value

    def stop(self) -> None:
        self._pool.shutdown()


def _prepare(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _called(function: str, arguments: tuple[Any, ...]) -> Outcome:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            calls = importlib.import_module("sdk_calls")
            return Outcome(getattr(calls, function)(*arguments), "", "", printed.getvalue())
        except Exception as error:
            return Outcome(None, type(error).__name__, str(error), printed.getvalue())
