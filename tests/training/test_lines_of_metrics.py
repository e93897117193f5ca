"""A line of metrics that is written while the next step runs says what it says when it is written at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import WORKER, Run, command, trainer_that_moved
from helpers.small_model import small_run
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from ftkit.training.checkpoints import step_of
from ftkit.training.methods.sft import SftTrainer
from ftkit.training.window import Moment, Window

JOINED = ("model.attn_implementation=ftkit_sinks",)
"""The loss is ``loss_head``'s, as on a GPU."""
SAME = ("step", "loss", "learning_rate", "grad_norm", "tokens", "loss_tokens", "eval_loss")
"""Of two trainings of the same rows; times differ."""


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SftTrainer, "lines_may_wait", True)


def lines(run: Run) -> list[dict[str, float]]:
    return [{key: line[key] for key in SAME if key in line} for line in run.metrics]


def test_lines_checkpoints_and_evaluations_are_those_of_a_cpu(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second step has a line; steps 3, 6 and 9 a checkpoint, 5 and 10 an evaluation."""
    changes = (*JOINED, "sft.logging_steps=2", "sft.max_steps=11", "sft.eval_strategy=steps", "sft.eval_steps=5")
    config = small_run(model_folder, *changes)
    at_once, later = (Run(config, token_file, tmp_path / name) for name in ("at-once", "later"))
    at_once.train()
    monkeypatch.setattr(SftTrainer, "lines_may_wait", True)
    later.train()
    assert [line["step"] for line in lines(later) if "loss" in line] == [2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert lines(later) == lines(at_once)
    for folder in later.checkpoints.iterdir():
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert history[-1]["step"] == step_of(folder)


def test_two_processes_write_their_lines_later_together(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    changes = (*JOINED, "sft.max_steps=4", "sft.per_device_train_batch_size=1")
    one = Run(small_run(model_folder, *changes, "sft.gradient_accumulation_steps=4"), token_file, tmp_path / "one")
    two = Run(small_run(model_folder, *changes, "sft.gradient_accumulation_steps=2"), token_file, tmp_path / "two")
    one.train()
    script, *arguments = command(two)
    later = "from ftkit.training.methods.sft import SftTrainer\nSftTrainer.lines_may_wait = True\n"
    Path(script).write_text(later + WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in two.metrics] == [1, 2, 3, 4]
    for key in SAME[:-1]:
        assert [line[key] for line in two.metrics] == pytest.approx([line[key] for line in one.metrics], rel=1e-3), key


class Reads(TorchDispatchMode):
    """Counts the numbers of tensors that the host reads, for which it would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


class BetweenSteps(TrainerCallback):
    """What the host reads from the end of a step to the next backward pass; steps done and lines written by then."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.written: list[tuple[int, int]] = []
        self._mode: Reads | None = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._mode = Reads().__enter__()

    def backward_begins(self, trainer: Any) -> None:
        if self._mode:
            self._mode.__exit__(None, None, None)
            self.reads.append(self._mode.count)
            self.written.append((trainer.state.global_step, len(trainer.state.log_history)))
            self._mode = None


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, model_folder: Path, token_file: Path, tmp_path: Path) -> Iterator[Any]:
    """A trainer of five steps, and what lies between them."""
    config = small_run(model_folder, *JOINED, "sft.max_steps=5", "sft.save_steps=50")
    trainer, between = trainer_that_moved(config, token_file, tmp_path / "checkpoints"), BetweenSteps()
    trainer.add_callback(between)
    backward = trainer.accelerator.backward
    monkeypatch.setattr(
        trainer.accelerator,
        "backward",
        lambda *args, **more: [between.backward_begins(trainer), backward(*args, **more)],
    )
    trainer.train()
    if between._mode:
        between._mode.__exit__(None, None, None)
    yield between


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_host_reads_nothing_of_the_gpu_from_the_end_of_a_step_to_the_next_backward_pass(watched: Any) -> None:
    assert watched.reads == [0, 0, 0, 0]
    assert watched.written == [(1, 0), (2, 1), (3, 2), (4, 3)], "the line of a step waits for the next one"


class Event:
    """CUDA's, of a GPU at whose clock the test turns."""

    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.came = 0.0

    def record(self) -> None:
        self.came = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return 1000 * (later.came - self.came)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_training_that_fails_has_written_all_its_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_loss, calls = SftTrainer.compute_loss, []

    def fails_at_the_third(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("the GPU has fallen off the bus")
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(SftTrainer, "compute_loss", fails_at_the_third)
    with pytest.raises(RuntimeError, match="the bus"):
        run.train()
    assert [line["step"] for line in run.metrics] == [1, 2]


def test_seconds_and_speed_are_those_of_the_gpu_whenever_the_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    counted = Window(tokens=100, loss_tokens=50, seconds=7)
    Event.now = 2
    ended = Moment()
    Event.now = 3
    line = counted.close(400, 100, ended)
    assert line == {
        "tokens": 500, "loss_tokens": 150, "tokens_per_s": 200, "loss_tokens_per_s": 50, "seconds": 9,
    }  # fmt: skip
    counted.restart()
    Event.now = 5
    line = counted.close(300, 30, Moment())
    assert (line["tokens_per_s"], line["seconds"]) == (150, 12), "the second between two windows is of the run"
