"""A Python that has imported libraries already, whose forks are commands: half of a small command's time is imports.

A fork is a process of its own, with its own folder, environment, files and signals; ftkit itself it imports afresh.

    python preloaded.py SOCKET MODULE…      # what ``Preloaded`` starts
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

OF_TESTS = {
    **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    **{"COLUMNS": "200", "LC_ALL": "C.UTF-8"},
}
"""Environment variables of every test: one thread a process, no hub, long lines."""
HYDRA = ("hydra.main", "hydra.core.override_parser.overrides_parser", "hydra._internal.hydra", "omegaconf")
"""What every command imports."""
TRAINING = (*HYDRA, "numpy", "torch", "transformers.trainer", "datasets", "peft", "trl.trainer.sft_trainer")
AZURE = (*HYDRA, "numpy", "azure.ai.ml.entities", "azure.identity", "httpx")
READ_AT_IMPORT = (
    *("PYTHON", "PATH", "LD_", "LANG", "LC_", "HOME", "TMPDIR", "TERM", "XDG_", "HF_", "TRANSFORMERS_", "TOKENIZERS_"),
    *("TORCH", "PYTORCH_", "OMP_", "MKL_", "KMP_", "TRITON", "CUDA", "ACCELERATE_", "DATASETS_", "TRL_", "TIKTOKEN_"),
    *("HYDRA_", "WANDB_", "AZUREML_RUN_POLLING"),
)
"""How the names of variables begin that are read while Python or a library starts; who differs in one shares none."""
ALONE = (["python"], ["jemalloc_bg_thd", "python"])
"""Threads of a Python that may be forked: Arrow's allocator knows of forks."""
WORTH_IT = 4
"""Commands of one kind, before a Python is kept for them."""
LONGEST_REQUEST = 1 << 20

_seen: Counter[frozenset[tuple[str, str]]] = Counter()
_kept: dict[frozenset[tuple[str, str]], Preloaded] = {}
_lock = threading.Lock()


def preloaded(environment: Mapping[str, str], modules: Sequence[str]) -> Preloaded | None:
    """The Python kept for commands with this environment; None while there have been few, and beside Linux."""
    if sys.platform != "linux":
        return None
    early = {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}
    key = frozenset({*early.items(), ("modules", " ".join(modules))})
    with _lock:
        _seen[key] += 1
        if _seen[key] == WORTH_IT:
            _kept[key] = Preloaded(modules, environment)
        return _kept.get(key)


class Forked:
    """A process of ``Preloaded``, with what is used of ``subprocess.Popen``."""

    def __init__(self, pid: int, ended: socket.socket):
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, −signal if one ended it, None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self.returncode if self.returncode is not None else self._read()

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _read(self) -> int:
        self.returncode = int(self._ended.recv(32).decode() or -9)
        self._ended.close()
        return self.returncode


class Preloaded:
    """Starts ``python -m …`` for tests.

    Args:
        modules: imported before the first command, ``TRAINING`` or ``AZURE``.
        environment: of that Python. A command's own may differ from it in what no library reads while it is imported.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno()), *modules]
        with theirs:
            self._process = subprocess.Popen(command, env=dict(environment), pass_fds=[theirs.fileno()], cwd="/")
        self._control, self._lock = ours, threading.Lock()

    def start(
        self, *arguments: str, cwd: Path, environment: Mapping[str, str], stdin: IO[Any] | None = None, stdout: IO[Any],
        stderr: IO[Any], own_session: bool = False,
    ) -> Forked:  # fmt: skip
        """``python -m arguments``; input is empty unless given."""
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment), "session": own_session}
        ended, told = socket.socketpair()
        with told, Path(os.devnull).open() as nothing, self._lock:
            files = [(stdin or nothing).fileno(), stdout.fileno(), stderr.fileno(), told.fileno()]
            socket.send_fds(self._control, [json.dumps(request).encode()], files)
            pid = self._control.recv(32)
        if not pid:
            raise RuntimeError(f"the Python that has imported libraries has ended: {self._process.wait()}")
        return Forked(int(pid), ended)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType]  # as ftkit has it for TRL
    for module in sys.argv[2:]:
        importlib.import_module(module)
    del sys.modules["wandb"]
    names = sorted(task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    assert names in ALONE, f"a fork of several threads may wait for one that it has not: {names}"
    gc.freeze()
    try:
        request = next_command(control)
    except KeyboardInterrupt:
        sys.exit(130)
    if request:
        become(request)


def next_command(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request and tell how each fork ended; returns a request in the fork, None when no more can come."""
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready in select.select([control.fileno(), *running], [], [])[0]:
            if ready in running:
                pid, told = running.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with socket.socket(fileno=told) as teller:
                    tell(teller, status)
                continue
            message, files, *_ = socket.recv_fds(control, LONGEST_REQUEST, 4)
            if not message:
                return None
            if (pid := os.fork()) == 0:
                for theirs in (control.detach(), *running, *(told for _, told in running.values()), files[3]):
                    os.close(theirs)
                return json.loads(message) | {"files": files[:3]}
            for file in files[:3]:
                os.close(file)
            running[os.pidfd_open(pid)] = (pid, files[3])
            control.send(str(pid).encode())


def tell(teller: socket.socket, status: int) -> None:
    try:
        teller.send(str(status).encode())
    except BrokenPipeError:
        return


def become(request: dict[str, Any]) -> None:
    """Be ``python -m`` with its arguments, folder, environment and streams."""
    if request["session"]:
        os.setsid()
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *sys.argv[1:] = request["arguments"]
    sys.path[0] = request["cwd"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
