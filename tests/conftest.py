"""Shared by all tests: one thread a process, no hub, an empty folder, a life cycle that has been run."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.browser import chromium  # noqa: F401
from helpers.command import FinishedRun, run_ftkit
from helpers.llama_cpp import Converter, install_converter
from helpers.preloaded import OF_TESTS

from ftkit.file_locks import take
from ftkit.files import written_aside

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and all they start, ignore it
os.environ.update(OF_TESTS)

LONGEST = (
    *(
        "models/gpt_oss/test_fused.py",
        "models/test_fused_families.py",
        "azure/test_endpoints.py",
        "azure/test_jobs.py",
        "azure/test_azure_life_cycle.py",
    ),
    *("stages/test_interruptions.py", "training/test_train.py", "azure/test_two_clients.py", "azure/test_faults.py"),
    *("platforms/test_slurm.py", "training/test_interrupted_runs.py", "training/test_sharding.py", "test_released.py"),
    *("serving/test_vllm_engine.py", "serving/test_fronts.py"),
    *("stages/test_gguf_conversion.py", "training/test_checkpoint_writer.py"),
    *("training/test_grpo.py", "training/test_heldout.py", "training/test_dpo.py", "evaluation/test_comparison.py"),
)
"""Files of a minute and more, begun first: else one process is still at them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    items.sort(key=lambda item: LONGEST.index(name) if (name := str(item.path.relative_to(tests))) in LONGEST else 99)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """What a test draws from torch does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


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
    """The eight stages of ``experiment=tiny`` and its evaluation, served: folder, and what the commands printed.

    Run once, by the first of pytest's processes that needs it; the others serve a copy of their own.
    """
    folder = tmp_path_factory.mktemp("life-cycle")
    tiny, done = ("experiment=tiny", "deployment.port=0"), None
    kept = of_all_processes(tmp_path_factory) / "life-cycle"
    try:
        with kept.with_suffix(".lock").open("w") as lock:
            take(lock, wait=True)
            if made_here := not kept.exists():
                done = run_ftkit(*tiny, "stage=all,evaluate", cwd=folder, timeout=500)
                assert done.status == 0, done
                with written_aside(kept) as aside:
                    shutil.copytree(folder / "outputs", aside / "outputs", ignore=shutil.ignore_patterns("endpoints"))
                    (aside / "printed").write_text(done.out, encoding="utf-8")
        if not made_here:
            shutil.copytree(kept / "outputs", folder / "outputs")
            (folder / "outputs" / "tiny" / "deploy" / "record.json").unlink()
            served = run_ftkit(*tiny, "stage=deploy", cwd=folder)
            assert served.status == 0, served
            done = replace(served, out=(kept / "printed").read_text(encoding="utf-8") + served.out)
        assert done
        yield FinishedRun(folder, done)
    finally:
        run_ftkit(*tiny, "stage=teardown", "yes=true", cwd=folder)


def of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this call of pytest, in which each of its processes has one of its own."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def copied_run(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """The run's files in a folder of the test's own, for tests that break them."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs")
    return FinishedRun(tmp_path, finished_run.all)


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """llama.cpp's own converter to GGUF."""
    return install_converter(tmp_path_factory.mktemp("llama.cpp"))
