"""Machines: the environment of what jobs and deployments run, and processes that end with all they started."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.preloaded import TRAINING, preloaded

GRACE_SECONDS = 20


def base_environment(home: Path, python: Path) -> dict[str, str]:
    """What every machine's processes have, and nothing of this machine's own environment."""
    return {
        "PATH": f"{python / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def free_port() -> int:
    """A port that nothing listens on and that no outgoing connection is given before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """A command in a session of its own, writing to a log."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as file:
            if (arguments := module_of_our_python(command, environment)) and (
                python := preloaded({**environment, "HOME": os.devnull}, TRAINING)
            ):
                self._process = python.start(
                    *arguments, cwd=folder, environment=environment, stdout=file, stderr=file, own_session=True
                )
                return
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def module_of_our_python(command: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """What follows ``python -m``, where a shell's line is nothing else and its Python that of the tests."""
    if command[:2] != ["bash", "-c"] or not environment["PATH"].startswith(f"{sys.prefix}/bin:"):
        return None
    line = command[2]
    simple = line.startswith("python -m ftkit ") and not re.search(r"[$`;&|<>()\n*?~]", line)
    return shlex.split(line)[2:] if simple else None


def stop(processes: Sequence[Process], grace: float = GRACE_SECONDS) -> None:
    """SIGTERM to all, which wakes those that are stopped, and SIGKILL to what is left after the grace, in seconds."""
    for process in processes:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process._process.wait(grace)
        process.signal(signal.SIGKILL)
        process._process.wait()


def tail(log: Path, lines: int) -> str:
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
