"""The command line as a user runs it, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from helpers.preloaded import AZURE, TRAINING, Preloaded, preloaded

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """A finished ``python -m ftkit …``."""

    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{self.out}\n{self.err}\n(status {self.status})"


def run_ftkit(
    *arguments: str, cwd: Path, timeout: float = 240, piped: str | None = None, **environment: str
) -> Command:
    """Run the command line in a folder, as a process of its own; ``piped`` is its input."""
    own = os.environ | environment
    if python := preloaded(own, AZURE if "AZURE_CLIENT_ID" in own else TRAINING):
        return _forked(python, *arguments, cwd=cwd, timeout=timeout, piped=piped, environment=own)
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", *arguments],
        cwd=cwd,
        env=own,
        capture_output=True,
        input=piped,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Command(done.returncode, done.stdout, done.stderr)


def _forked(
    python: Preloaded, *arguments: str, cwd: Path, timeout: float, piped: str | None, environment: dict[str, str]
) -> Command:
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(piped or "")
        given.seek(0)
        process = python.start(
            "ftkit", *arguments, cwd=cwd, environment=environment, stdin=given, stdout=out, stderr=err
        )
        try:
            process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return Command(process.wait(), out.read(), err.read())


def on_terminal(*arguments: str, columns: int, **environment: str) -> str:
    """What a command without colours prints on a terminal so many columns wide."""
    ours, theirs = os.openpty()
    shown = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "ftkit", *arguments]
    with subprocess.Popen(command, env=os.environ | shown | environment, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        out = b""
        with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
            while some := os.read(ours, 65536):
                out += some
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", out.decode()).replace("\r\n", "\n")


@dataclass(frozen=True)
class FinishedRun:
    """A life cycle that has been run: the working directory, the command's output, and the run's name."""

    folder: Path
    all: Command
    name: str = "tiny"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs" / self.name

    def ftkit(self, *arguments: str, piped: str | None = None, **environment: str) -> Command:
        """Another command in the same folder."""
        tiny = ("experiment=tiny", "deployment.port=0")
        return run_ftkit(*tiny, *arguments, cwd=self.folder, piped=piped, **environment)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a process has printed up to a line with a text in it."""
    assert process.stdout is not None
    out = ""
    for line in process.stdout:
        out += line
        if text in line:
            return out
    raise AssertionError(f"it ended without {text!r}:\n{out}{process.stderr.read() if process.stderr else ''}")
