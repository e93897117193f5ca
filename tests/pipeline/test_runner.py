"""What the runner does between stages."""

from __future__ import annotations

import os
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
    gone_when_emptied, done = [], []
    monkeypatch.setattr(runner, "run_stage", lambda *_: models.append(weakref.ref(Model())))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def empty() -> None:
        gone_when_emptied.append(models[-1]() is None)
        done.append("emptied")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: done.append("workspaces gone"), raising=False
    )  # fmt: skip
    runner.run(resolve(["experiment=tiny", "stage=prepare,publish", f"run.outputs={tmp_path}"]))
    assert gone_when_emptied == [True, True]
    assert done == ["workspaces gone", "emptied"] * 2, "a workspace would keep the whole piece that it lies in"


def test_torch_finds_its_settings_when_a_stage_before_train_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It reads them once, as ``environment`` looks for GPUs; an endpoint does not inherit them."""
    seen: list[tuple[str, str | None]] = []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(
        runner, "run_stage", lambda _, stage, __: seen.append((stage.name, os.environ.get("PYTORCH_CUDA_ALLOC_CONF")))
    )
    settings = ["experiment=tiny", f"run.outputs={tmp_path}"]
    runner.run(resolve([*settings, "stage=all"]))
    assert seen[:4] == [(name, "expandable_segments:True") for name in ("environment", "prepare", "publish", "train")]
    assert seen[4:] == [(name, None) for name in ("merge", "register", "deploy", "invoke")]
    seen.clear()
    runner.run(resolve([*settings, "stage=environment,prepare"]))
    assert seen == [("environment", None), ("prepare", None)]
