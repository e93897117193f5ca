"""The process that a shared vLLM belongs to: it starts it, watches it, and ends it when gunicorn's master is gone.

    python -c … <root of the package> <folder of the board> <descriptor of its lock> <gunicorn's master> <arguments>

It imports next to nothing: it stays while front processes, which are large and do the work, come and go.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.board import ENDED_TOO_OFTEN, FAILED, Board, began
from ftkit.serving.endpoint.vllm_server import VllmServer

LOOK_S = 0.2
TOUCH_S = 3600
ORPHAN_S = 20
"""How long a vLLM whose supervisor was killed may take to end by itself: it holds the GPU's memory until then."""


def main() -> None:
    """Have vLLM run until gunicorn's master is gone, or a front process finds that it is of no use."""
    folder, _lock, master, *arguments = sys.argv[1:]  # the descriptor holds the lock as long as this process is there
    _log_as_the_server_does()
    signal.signal(signal.SIGTERM, _end)
    board, since = Board(Path(folder)), began(int(master))
    threading.Thread(target=_end_with, args=[int(master), since, board], daemon=True).start()
    try:
        _end_orphan(*board.engine)
        _serve(arguments, board)
        while True:
            signal.pause()
    finally:
        if began(int(master)) != since:
            shutil.rmtree(folder, ignore_errors=True)


def _serve(arguments: list[str], board: Board) -> None:
    try:
        server = Shown(arguments, board)
        server.wait()
    except ModelError as error:
        board.give_up(FAILED, str(error))
        return
    while board.state != FAILED:
        time.sleep(LOOK_S)
    server.stop()


class Shown(VllmServer):
    """A vLLM whose port stands on the board while it answers."""

    def __init__(self, arguments: list[str], board: Board):
        self._board = board
        super().__init__(arguments)

    def _start(self) -> None:
        super()._start()
        self._board.engine = self._process.pid

    def _tell(self, *, is_ready: bool) -> None:
        super()._tell(is_ready=is_ready)
        self._board.port = self.port if is_ready else 0

    def _give_up(self) -> NoReturn:
        self._board.give_up(ENDED_TOO_OFTEN)
        super()._give_up()


def _end(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)  # which ends vLLM


def _end_with(master: int, since: int, board: Board) -> None:
    due = 0.0
    while since and began(master) == since:
        if time.monotonic() > due:
            board.touch()
            due = time.monotonic() + TOUCH_S
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_orphan(pid: int, since: int) -> None:
    """Wait for the vLLM of a supervisor that was killed, to which the system has sent SIGTERM."""
    until = time.monotonic() + ORPHAN_S
    while since and began(pid) == since:
        if time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


def _log_as_the_server_does() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s [%(process)d] %(name)s - %(message)s"))
    logger = logging.getLogger("azmlinfsrv")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
