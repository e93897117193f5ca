"""The one vLLM of several front processes, as each of them sees it.

It belongs to a process of its own (``vllm_supervisor``), so that a front process that is killed takes nothing with it.
One of them leads: it has that process started, and tries vLLM before the others use it. Leading is a lock: when its
holder ends, the next one takes it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.board import ENDED_TOO_OFTEN, FAILED, Board

LOOK_S = 0.1
"""How often each looks how the others are."""
PATIENCE_S = 30
"""How long one waits to be ended for a failure that another one has told; that may have been killed as it did."""
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from ftkit.serving.endpoint.vllm_supervisor import main; main()"
)
"""No PYTHONPATH: vLLM would inherit it, and may live in an environment of its own."""

log = logging.getLogger("azmlinfsrv.print")


class SharedVllm:
    """See ``VllmServer``; ``wait`` returns when vLLM is healthy, and was tried, unless this process is to do so.

    Args:
        arguments: of ``vllm serve``, host and port aside.
        board: that all of them share.
        master: gunicorn's.
    """

    def __init__(self, arguments: Sequence[str], board: Board, master: int):
        self._arguments, self._board, self._master = arguments, board, master
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lead: IO[bytes] | None = None
        self._patient_until = 0.0
        self.is_untried = False
        if not board.is_open and board.state != FAILED and self._leads() and not board.is_held("supervisor"):
            self._start()

    def wait(self) -> None:
        """Return when vLLM answers and was tried, or is to be tried by this process.

        Raises:
            ModelError: vLLM did not start; in one of the processes alone, the others wait to be ended.
        """
        board = self._board
        with self._ending_by_sigterm():
            while not board.is_open:
                if self._leads() and self._is_up():
                    self.is_untried = True
                    return
                if os.getppid() != self._master:
                    os._exit(1)
                time.sleep(LOOK_S)

    @property
    def port(self) -> int:
        return self._board.port

    @property
    def is_ready(self) -> bool:
        return bool(self._board.port)

    def let_in(self) -> None:
        """It was tried, and answers as it should."""
        if self.is_untried:
            self._board.open()
        threading.Thread(target=self._watch, name="vllm", daemon=True).start()

    def leave(self) -> None:
        """This process fails; the others have their vLLM, and if they fail as well it ends with gunicorn."""

    def stop(self, why: str = "") -> None:
        """End it for all processes: it is of no use."""
        self._board.give_up(FAILED, why)
        self._board.is_mine_to_tell()

    def _leads(self) -> bool:
        self._lead = self._lead or self._board.lock("lead")
        return self._lead is not None

    def _is_up(self) -> bool:
        """Whether vLLM answers; has it started, once."""
        if self._board.state == FAILED:
            self._patient_until = self._patient_until or time.monotonic() + PATIENCE_S
            if self._board.is_mine_to_tell() or time.monotonic() > self._patient_until:
                raise ModelError(self._board.reason)
            return False
        if not self._board.is_held("supervisor"):
            if self._supervisor:
                raise ModelError("the process that starts vLLM was killed, for want of memory perhaps")
            self._start()
        return self.is_ready

    def _start(self) -> None:
        lock = self._board.lock("supervisor")
        if lock is None:
            return
        with lock:  # its copy in the new process holds it from now on
            self._board.begin()
            root, words = Path(__file__).parents[3], [str(self._board.folder), str(lock.fileno()), str(self._master)]
            self._supervisor = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(root), *words, *self._arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
            )

    def _watch(self) -> None:
        """See that somebody watches vLLM; end with it when it is given up, as every front process does."""
        while os.getppid() == self._master:
            time.sleep(LOOK_S)
            if self._board.state in (FAILED, ENDED_TOO_OFTEN):
                log.error("vLLM is not started again; this process ends")
                os._exit(1)
            is_alone = self._leads() and not self._board.is_held("supervisor")
            if is_alone and self._board.state not in (FAILED, ENDED_TOO_OFTEN):  # not said meanwhile
                log.error("the process that watches vLLM has ended; both are started again")
                self._start()

    @contextmanager
    def _ending_by_sigterm(self) -> Iterator[None]:
        """gunicorn's workers take SIGTERM only once they serve, which may be minutes from now.

        Azure ML's server would take a SystemExit for a failure of the script, and say so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
