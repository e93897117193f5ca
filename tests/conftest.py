"""Shared by all tests: one thread a process, no hub, an empty folder, a life cycle that has been run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers.browser import chromium  # noqa: F401
from helpers.command import FinishedRun, run_ftkit
from helpers.llama_cpp import Converter, install_converter

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and all they start, ignore it
os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", COLUMNS="200", LC_ALL="C.UTF-8"
)


@pytest.fixture
def ftkit(tmp_path: Path):
    """``ftkit("stage=plan", …)`` in an empty folder."""
    return lambda *arguments, **more: run_ftkit(*arguments, cwd=tmp_path, **more)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workspace_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace in the environment, for what is resolved but never asks Azure."""
    for name in ("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE_NAME"):
        monkeypatch.setenv(name, "some")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory):
    """The eight stages of ``experiment=tiny`` and its evaluation, run once: folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("life-cycle")
    tiny = ("experiment=tiny", "deployment.port=0")
    try:
        done = run_ftkit(*tiny, "stage=all,evaluate", cwd=folder)
        assert done.status == 0, done
        yield FinishedRun(folder, done)
    finally:
        run_ftkit(*tiny, "stage=teardown", "yes=true", cwd=folder)


@pytest.fixture
def copied_run(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """The run's files in a folder of the test's own, for tests that break them."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs")
    return FinishedRun(tmp_path, finished_run.all)


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """llama.cpp's own converter to GGUF."""
    return install_converter(tmp_path_factory.mktemp("llama.cpp"))
