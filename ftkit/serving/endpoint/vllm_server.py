"""A vLLM on 127.0.0.1 that belongs to this process: started, watched, started again, and stopped with it."""

from __future__ import annotations

import atexit
import ctypes
import http.client
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ftkit.chat.messages import ModelError

HOST = "127.0.0.1"
ENDS, WITHIN_S = 3, 600
"""vLLM is started again unless it has ended so often within so many seconds: then the process ends, and its log says
why. What watches the process (gunicorn, a probe) decides on."""
LINES = 400
"""Of its log that are looked through for the reason of an end."""
LONGEST = 400
"""Characters of a reason: vLLM lists all architectures that it knows."""
PREFIX = re.compile(r"^\(\w+ pid=\d+\)")
ERROR = re.compile(r"(?:\b[a-z_]\w*\.)*\b[A-Z]\w*(?:Error|Exception)\b.*")
ELSEWHERE = re.compile(r"(?i)see (?:the )?(?:root cause|stack trace)|engine core initialization failed")
"""Said by the process whose engine has failed in another one, after that."""
SOURCE = re.compile(r"\braise [\w.]+\(")
"""A line of the program in a traceback: the error itself follows it."""
COUNTED = re.compile(r"\d+ validation errors? for \w+$")
PORT_TAKEN = re.compile(r"(?i)address already in use")
STARTS_SOONER = {"VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_ENABLE_STARTUP_PLAN": "1"}
"""fork spares its second process all imports; the plan remembers what two trials of memory found, for the next start
with the same settings. The endpoint's own environment comes before these."""
STARTS = 3
"""On another port each: between its choice and vLLM's own binding another process may take it."""

log = logging.getLogger("azmlinfsrv.print")


def find_vllm() -> str | None:
    """The path of ``vllm``, beside this Python or else on the PATH."""
    return shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")


def has_gpu() -> bool:
    """Whether there is one that programs can use; NVIDIA's driver itself is asked: torch takes seconds to load."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        import torch

        return torch.cuda.is_available()  # AMD's too
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def environment_of_vllm(own: Mapping[str, str]) -> dict[str, str]:
    """The endpoint's own environment, and what has vLLM start sooner where that says nothing of it.

    Triton's compiled kernels get a folder below vLLM's cache: in a start that compiles, Inductor has Triton keep them
    in its own; in a later one, which loads what was compiled, nothing does, and Triton would compile them again.
    """
    root = Path(own.get("VLLM_CACHE_ROOT") or Path(own.get("XDG_CACHE_HOME") or "~/.cache", "vllm"))
    with suppress(RuntimeError):  # a user without a home: vLLM takes the name as it stands, too
        root = root.expanduser()
    return {**STARTS_SOONER, "TRITON_CACHE_DIR": str(root / "triton"), **own, "VLLM_NO_USAGE_STATS": "1"}


def reason_in(lines: Sequence[str]) -> str:
    """The last error that a log tells of and that says more than that there was one, or else its last line."""
    said = [text for line in lines if (text := PREFIX.sub("", line).strip())]
    for number in reversed(range(len(said))):
        if SOURCE.search(said[number]) or ELSEWHERE.search(said[number]):
            continue
        if found := ERROR.search(said[number]):
            more = said[number + 1 : number + 2] if COUNTED.search(found[0]) else []  # of pydantic: what, a line below
            return " ".join([found[0], *(line.partition(" [type=")[0] for line in more)])[:LONGEST]
    return said[-1][:LONGEST] if said else "it says nothing"


class VllmServer:
    """Its process; the constructor starts it, in the main thread, and ``wait`` returns when it is healthy.

    Args:
        arguments: of ``vllm serve``, host and port aside.

    Raises:
        ModelError: vLLM is not installed.
    """

    is_untried = True
    """Whether this process is to try it."""

    def __init__(self, arguments: Sequence[str]):
        executable = find_vllm()
        if executable is None:
            raise ModelError("the engine is vllm, which is not installed: pip install vllm, or deployment.engine=auto")
        self._command = [executable, "serve", *arguments, "--host", HOST]
        self._lines: deque[str] = deque(maxlen=LINES)
        self._stopping, self._ready = False, threading.Event()
        self._ended_at: deque[float] = deque(maxlen=ENDS)
        self.port = 0
        self._start()
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return when it is healthy; from then on it is started again if it ends.

        Raises:
            ModelError: it ended before.
        """
        self._wait_or_start_again()
        threading.Thread(target=self._watch, name="vllm", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def let_in(self) -> None:
        """It was tried; nobody waits to be told."""

    def leave(self) -> None:
        """This process fails, for a reason of its own."""
        self.stop()

    def stop(self, why: str = "") -> None:
        """End it, and wait for that; whoever asks for it knows why."""
        self._stopping = True
        self._tell(is_ready=False)
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _wait_or_start_again(self) -> None:
        for left in reversed(range(STARTS)):
            try:
                return self._wait()
            except ModelError as error:
                if not (left and PORT_TAKEN.search(str(error))):
                    self.stop()
                    raise
                log.warning("port %d was taken meanwhile; vLLM is started on another one", self.port)
                self._start()

    def _start(self) -> None:
        self.port = _free_port()
        self._lines.clear()
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment_of_vllm(os.environ),
            preexec_fn=_end_with_parent,
        )
        self._reading = threading.Thread(target=self._read_log, args=[self._process], name="vllm's log", daemon=True)
        self._reading.start()

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line)
            log.info("vllm: %s", line.rstrip())

    def _wait(self) -> None:
        while self._process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    self._tell(is_ready=True)
                    return
            time.sleep(0.1)
        raise ModelError(f"vLLM ended as it started (status {self._process.returncode}): {self._reason()}")

    def _reason(self) -> str:
        self._reading.join(timeout=2)  # what it has started may hold its log open
        return reason_in(list(self._lines))

    def _watch(self) -> None:
        while True:
            status = self._process.wait()
            self._tell(is_ready=False)
            if self._stopping:
                return
            now = time.monotonic()
            log.error("vLLM ended by itself (status %d): %s", status, self._reason())
            often = len(self._ended_at) == ENDS and now - self._ended_at[0] < WITHIN_S
            self._ended_at.append(now)
            if often:
                self._give_up()
            self._start()
            with suppress(ModelError):  # the next turn says so
                self._wait()

    def _tell(self, *, is_ready: bool) -> None:
        """Have it known whether it answers."""
        if is_ready:
            self._ready.set()
        else:
            self._ready.clear()

    def _give_up(self) -> NoReturn:
        log.error("that was too often; this process ends")
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind((HOST, 0))
        return held.getsockname()[1]


def _end_with_parent() -> None:
    """Linux ends the child when this process is killed: it would keep the GPU's memory."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
