"""hydra/sweeper=search: Optuna chooses the values, and is told the held-out loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from helpers.command import FinishedRun, run_ftkit

SEARCH = ("experiment=tiny", "stage=train", "sft.learning_rate=interval(1e-3,1e-2)", "hydra/sweeper=search", "-m")


def test_each_trial_is_a_run_of_its_own(finished_run: FinishedRun, tmp_path: Path):
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs")
    done = run_ftkit(*SEARCH, "sft.max_steps=1", "lora.r=choice(2,4)", "hydra.sweeper.n_trials=2", cwd=tmp_path)
    assert done.status == 0, done.err
    records = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/tiny-*/train/record.json")]
    assert len(records) == 2 and all(1e-3 <= record["settings"]["sft.learning_rate"] <= 1e-2 for record in records)


def test_what_is_objective_is_the_held_out_loss(finished_run: FinishedRun):
    from ftkit.__main__ import _objective
    from ftkit.config.resolve import resolve

    outputs = f"run.outputs={finished_run.folder / 'outputs'}"
    record = json.loads((finished_run.outputs / "train" / "record.json").read_text())
    assert _objective(resolve(["experiment=tiny", outputs])) == record["result"]["eval_loss"] < 1
    assert _objective(resolve(["experiment=tiny", outputs, "run.name=none"])) == float("inf")


def test_the_ends_of_an_interval_are_checked_before_the_first_run(tmp_path: Path):
    done = run_ftkit(*SEARCH, "lora.lora_dropout=interval(0.0,0.5)", cwd=tmp_path)
    assert done.status == 2 and "PEFT has no dropout on expert tensors" in done.err and "Traceback" not in done.err
