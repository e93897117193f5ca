"""Shared by all tests: one thread a process, no hub, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", COLUMNS="200")
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Command:
    """A finished ``python -m ftkit …``."""

    status: int
    out: str
    err: str


def run_ftkit(*arguments: str, cwd: Path, timeout: float = 240, **environment: str) -> Command:
    """Run the command line in a folder, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Command(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def ftkit(tmp_path: Path):
    """``ftkit("stage=plan", …)`` in an empty folder."""
    return lambda *arguments, **environment: run_ftkit(*arguments, cwd=tmp_path, **environment)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory):
    """The eight stages of ``experiment=tiny`` and its evaluation, run once: folder, and what each command printed."""
    folder = tmp_path_factory.mktemp("life-cycle")
    tiny = ("experiment=tiny", "deployment.port=0")
    try:
        commands = {stage: run_ftkit(*tiny, f"stage={stage}", cwd=folder) for stage in ("all", "evaluate")}
        for stage, done in commands.items():
            assert done.status == 0, f"stage={stage}\n{done.out}\n{done.err}"
        yield FinishedRun(folder, commands["all"], commands["evaluate"])
    finally:
        run_ftkit(*tiny, "stage=teardown", "yes=true", cwd=folder)


@dataclass(frozen=True)
class FinishedRun:
    """A life cycle that has been run: the working directory, and two commands' output."""

    folder: Path
    all: Command
    evaluate: Command

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs" / "tiny"

    def ftkit(self, *arguments: str, **environment: str) -> Command:
        """Another command in the same folder."""
        return run_ftkit("experiment=tiny", "deployment.port=0", *arguments, cwd=self.folder, **environment)
