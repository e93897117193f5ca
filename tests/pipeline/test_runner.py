"""What the runner does between stages."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from ftkit.config.resolve import resolve
from ftkit.pipeline import runner


class Model:
    """Refers to itself, as trainers and their callbacks do."""

    def __init__(self):
        self.trainer = self


def test_the_gpu_memory_of_a_stage_is_free_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models: list[weakref.ref[Model]] = []
    gone_when_emptied = []
    monkeypatch.setattr(runner, "run_stage", lambda *_: models.append(weakref.ref(Model())))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone_when_emptied.append(models[-1]() is None))
    runner.run(resolve(["experiment=tiny", "stage=prepare,publish", f"run.outputs={tmp_path}"]))
    assert gone_when_emptied == [True, True]
