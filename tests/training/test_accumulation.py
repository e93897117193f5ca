"""However eight rows are shared out over batches and processes, loss, gradients and weights are the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.runs import Run, command
from helpers.small_model import save_token_rows, small_run

STEPS = ["sft.max_steps=3", "sft.optim=sgd", "sft.learning_rate=0.5", "sft.max_grad_norm=0", "sft.warmup_steps=0",
         "sft.lr_scheduler_type=constant", "lora.init_lora_weights=false"]  # fmt: skip
"""Plain descent with B not zero: weights are the start's minus the gradients, so equal weights are equal gradients."""
WAYS = {"1 × 8": (1, 8, 1), "2 × 4": (2, 4, 1), "8 × 1": (8, 1, 1), "2 processes of 1 × 4": (1, 4, 2)}


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Rows of 6 to 62 tokens, so that a mean of batches' means would be another loss."""
    folder = tmp_path_factory.mktemp("ways")
    tokens = save_token_rows(folder / "tokens.parquet", [6, 62, 9, 40, 7, 55, 12, 33], split=["train"] * 8)
    made = {}
    for name, (batch, accumulated, processes) in WAYS.items():
        sizes = [f"sft.per_device_train_batch_size={batch}", f"sft.gradient_accumulation_steps={accumulated}"]
        run = made[name] = Run(small_run(model_folder, *STEPS, *sizes), tokens, folder / name.replace(" ", ""))
        if processes == 1:
            run.train()
            continue
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run([*torchrun, *command(run)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_loss_gradients_and_weights_are_those_of_one_row_at_a_time(runs: dict[str, Run], way: str) -> None:
    """Guards: the loss tokens of all processes that get_batch_samples returns, and average_tokens_across_devices."""
    one, other = runs["1 × 8"], runs[way]
    for key in ("loss", "grad_norm", "tokens", "loss_tokens"):
        assert [line[key] for line in other.metrics] == pytest.approx([line[key] for line in one.metrics], rel=1e-4), (
            key
        )
    losses = [line["loss"] for line in one.metrics]
    assert losses[2] < losses[0] - 0.01, "the weights have moved"
    for name, tensor in other.weights.items():
        torch.testing.assert_close(tensor, one.weights[name], rtol=1e-4, atol=1e-5, msg=name)


def test_each_step_has_gradients_of_its_own(runs: dict[str, Run], tmp_path: Path) -> None:
    """With weights that hardly move, those of the same rows are as long at each step.

    Guard: the weights whose gradients trainer._visit_less takes away.
    """
    run = replace(runs["8 × 1"], folder=tmp_path)
    still = run.config.sft.model_copy(update={"learning_rate": 1e-6})
    run = replace(run, config=run.config.model_copy(update={"sft": still}))
    run.train()
    assert [line["grad_norm"] for line in run.metrics] == pytest.approx([run.metrics[0]["grad_norm"]] * 3, rel=1e-3)
