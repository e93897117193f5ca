"""Trainings of the small model as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.training.train import TrainResult
from helpers.runs import Run
from helpers.small_model import small_run


@pytest.fixture(scope="session")
def whole(
    model_folder: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, TrainResult, list[str]]:
    """A run that nothing interrupted: 16 rows in batches of 2, 2 epochs, 16 steps, a checkpoint every 3."""
    run = Run(small_run(model_folder), token_file, tmp_path_factory.mktemp("whole"))
    return run, *run.train()


@pytest.fixture
def run(model_folder: Path, token_file: Path, tmp_path: Path) -> Run:
    return Run(small_run(model_folder), token_file, tmp_path / "run")
