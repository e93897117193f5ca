"""lm-eval's harness as a child process: it brings tasks, prompts and metrics, and asks this process for the answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ftkit.config.lm_eval import LmEval
from ftkit.errors import StageError, nearest

WORKER = Path(__file__).with_name("worker.py")
LOG = "lm_eval.log"
QUOTED_LINES = 3
"""The last lines of a failed child's log, in the message."""

Answer = Callable[[str, Sequence[dict[str, Any]]], list[Any]]
"""Answers requests of a kind: ``generate``, ``loglikelihood`` or ``rolling``."""


class Harness:
    """A context in which the child runs; it has ended, with all that it started, when the context is left.

    Args:
        settings: tasks, and where lm-eval is.
        include_path: folder with the user's tasks, where it lies here.
        system: system message of every chat.
        folder: for its log.

    Raises:
        StageError: on entering: there is no such task, or its questions cannot be read.
    """

    def __init__(self, settings: LmEval, include_path: Path | None, system: str, folder: Path):
        self._settings, self._include_path, self._system = settings, include_path, system
        self._log = folder / LOG

    def __enter__(self) -> Self:
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [interpreter(self._settings), str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONSAFEPATH": "1", "TQDM_DISABLE": "1"},
                start_new_session=True,
            )
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _begin(self) -> None:
        settings = self._settings
        self._send(
            tasks=settings.tasks,
            include_path=str(self._include_path) if self._include_path else None,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            system=self._system,
        )
        reply = self._receive()
        if "unknown" in reply:
            raise self._unknown(reply["unknown"], reply["known"])
        self.version: str = reply["ready"]

    def evaluate(self, task: str, answer: Answer) -> list[dict[str, Any]]:
        """Put a task to a model.

        Args:
            task: one of the settings'.
            answer: gives the model's answers.

        Returns:
            Each figure of the task and, if it is a group, of those in it: ``task``, ``metric``, ``value``, ``stderr``
            or None, ``higher_is_better`` or None, ``questions``, and ``each``: a value for each question, or None.

        Raises:
            StageError: the child failed; quotes the end of its log.
        """
        self._send(evaluate=task)
        while "result" not in (message := self._receive()):
            self._send(answers=answer(message["ask"], message["requests"]))
        return message["result"]

    def _send(self, **message: Any) -> None:
        stdin: IO[str] = self._process.stdin  # pyright: ignore[reportAssignmentType]
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def _receive(self) -> dict[str, Any]:
        stdout: IO[str] = self._process.stdout  # pyright: ignore[reportAssignmentType]
        if line := stdout.readline():
            return json.loads(line)
        raise self._failed()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if stream:
                    stream.close()

    def _unknown(self, names: Sequence[str], known: Sequence[str]) -> StageError:
        close = {name: nearest(name, known) for name in names}
        meant = [f"{other} for {name}" for name, other in close.items() if other]
        cure = f"did you mean {', '.join(meant)}?" if meant else "evaluation.lm_eval.include_path=<a folder>"
        where = interpreter(self._settings) + (f" and {self._include_path}" if self._include_path else "")
        return StageError(f"lm-eval has no task {', '.join(names)}", where=where, cure=cure)

    def _failed(self) -> StageError:
        status = self._process.wait()
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        said = " / ".join([line for line in lines if line][-QUOTED_LINES:])
        cure = "what lm-eval asks for there; the same command keeps the answers that were given"
        return StageError(f"lm-eval ended with status {status}: {said}", where=str(self._log), cure=cure)


def interpreter(settings: LmEval) -> str:
    """The one that lm-eval runs under."""
    return str(Path(settings.python).expanduser()) if settings.python else sys.executable
