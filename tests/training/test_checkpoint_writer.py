"""Checkpoints are written beside the next steps, and promise what they would if training waited for each."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import read_until
from helpers.runs import Run, command
from helpers.small_model import small_run

from ftkit.errors import Interrupted, StageError
from ftkit.processes import _left_in
from ftkit.training import checkpoint_writer, trainer
from ftkit.training.checkpoint_writer import CheckpointWriter, HostCopies
from ftkit.training.checkpoints import is_complete, mark_complete, newest_complete
from ftkit.training.train import train

HANGING = """
import threading
from ftkit.training import trainer
mark = trainer.mark_complete

def hang(checkpoint):
    if checkpoint.name == "checkpoint-6":
        threading.Event().wait()
    mark(checkpoint)

trainer.mark_complete = hang
"""
"""A disk that never has the whole of checkpoint 6, for the head of ``helpers.runs.WORKER``."""


@pytest.fixture
def run(model_folder: Path, token_file: Path, tmp_path: Path) -> Run:
    """Two epochs of 8 steps, a checkpoint every 3, of which one is kept."""
    return Run(small_run(model_folder, "sft.save_total_limit=1"), token_file, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(model_folder: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, trained to its end without an interruption."""
    run = Run(small_run(model_folder), token_file, tmp_path_factory.mktemp("whole"))
    run.train()
    return run


def test_a_run_that_is_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(run: Run, whole: Run) -> None:
    """It is killed at step 8, with two steps done beside the writing. Guard: keep_newest comes after mark_complete."""
    script, *arguments = command(run)
    Path(script).write_text(HANGING + Path(script).read_text())
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    read_until(process, "step  8/")  # step 9 waits for the disk for ever
    process.kill()
    process.wait()
    third, sixth = run.checkpoints / "checkpoint-3", run.checkpoints / "checkpoint-6"
    assert newest_complete(run.checkpoints) == (third, [sixth])

    result, said = run.train()
    assert result.resumed_from == 3
    assert f"{sixth} was cut off while it was written; removed" in said
    same(run, whole)
    assert [path.name for path in run.checkpoints.glob("checkpoint-*")] == ["checkpoint-16"]


def test_a_second_ctrl_c_waits_for_what_is_being_written_which_is_what_was_there_when_it_was_saved(
    run: Run, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint 3 is not begun before step 5 is done. Guards: the copies in CheckpointWriter.start, and its wait in
    ``finishing``."""
    moved, write = threading.Event(), trainer.write_weights

    def late(model: torch.nn.Module, folder: Path, *arguments: Any) -> None:
        assert moved.wait(60)
        write(model, folder, *arguments)

    def say(line: str) -> None:
        if line.startswith("step  5/"):
            os.kill(os.getpid(), signal.SIGINT)
            moved.set()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "write_weights", late)
    with pytest.raises(Interrupted, match="goes on from step 3"):
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    monkeypatch.undo()
    result, _ = run.train()
    assert result.resumed_from == 3
    same(run, whole)


def test_the_writer_walks_through_no_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's experts change their modules in each forward pass, beside which the checkpoint is written."""
    walk, here = torch.nn.Module.named_modules, []

    def named_modules(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return walk(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "named_modules", named_modules)
    run.train()
    assert here and all(here)


def test_training_ends_at_the_step_after_an_error_of_the_writer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: ``failed`` in trainer._note; else it goes on to the next checkpoint."""
    goes_on, said = threading.Event(), []

    def full(checkpoint: Path) -> None:
        assert goes_on.wait(60)
        raise OSError(errno.ENOSPC, "No space left on device", str(checkpoint / "optimizer.pt"))

    def say(line: str) -> None:
        said.append(line[:8])
        if line.startswith("step  4/"):
            goes_on.set()
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()

    monkeypatch.setattr(trainer, "mark_complete", full)
    with pytest.raises(StageError, match=r"the disk is full: .* GiB are free") as caught:
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    assert caught.value.where == str(run.checkpoints / "checkpoint-3" / "optimizer.pt")
    assert said[-1] == "step  4/"
    assert not list(run.checkpoints.glob("checkpoint-*")), "what cannot be whole takes room"


def test_an_error_of_the_last_checkpoint_is_one_of_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: writer.wait in train._to_the_end."""

    def full(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-16":
            raise OSError(errno.ENOSPC, "No space left on device")
        mark_complete(checkpoint)

    monkeypatch.setattr(trainer, "mark_complete", full)
    with pytest.raises(StageError, match="the disk is full"):
        run.train()
    assert not (run.out / "adapter").exists()
    assert newest_complete(run.checkpoints) == (run.checkpoints / "checkpoint-15", [])


FULL = """
import errno
from ftkit.training import trainer

def full(checkpoint):
    raise OSError(errno.ENOSPC, "No space left on device")

trainer.mark_complete = full
"""


@pytest.mark.slow
def test_every_process_ends_with_an_error_of_the_writer(run: Run) -> None:
    """Guard: ``together`` around writer.wait in before_optimizer_step and _save_checkpoint; the first process writes,
    and the others would wait for it at the next step."""
    script, *arguments = command(run)
    Path(script).write_text(FULL + Path(script).read_text())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "another process reports: the disk is full" in done.stderr, done.stderr


def test_where_memory_is_short_training_waits_and_nothing_is_copied(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: free_memory in HostCopies.of."""
    threads: set[str] = set()

    def seal(checkpoint: Path) -> None:
        threads.add(threading.current_thread().name)
        mark_complete(checkpoint)

    monkeypatch.setattr(checkpoint_writer, "free_memory", lambda: 0)
    monkeypatch.setattr(trainer, "mark_complete", seal)
    run.train()
    assert threads == {"MainThread"} and is_complete(run.checkpoints / "checkpoint-16")


def test_copies_are_made_into_the_memory_of_the_ones_before_and_what_is_one_stays_one() -> None:
    weight, moment = torch.ones(3, 4), torch.zeros(5, dtype=torch.bfloat16)
    copies = HostCopies()
    states = {"weights": {"in": weight, "out": weight.view_as(weight)}, "optimizer": [{"moment": moment, "lr": 0.1}]}
    first = copies.of(states)
    assert first is not None and first["optimizer"][0]["lr"] == 0.1
    assert first["weights"]["in"].data_ptr() == first["weights"]["out"].data_ptr() != weight.data_ptr()
    weight.fill_(2)
    assert first["weights"]["in"].eq(1).all() and first["optimizer"][0]["moment"].dtype == torch.bfloat16
    second = copies.of(states)
    assert second is not None and second["weights"]["in"].data_ptr() == first["weights"]["in"].data_ptr()
    assert second["weights"]["out"].eq(2).all()


def test_a_run_that_fails_says_that_its_last_checkpoint_failed_too() -> None:
    """Guard: ``say`` in CheckpointWriter.finishing."""
    writer, said = CheckpointWriter(), []

    def full(copies: dict[str, Any]) -> None:
        raise StageError("the disk is full")

    writer.start({}, full)
    with pytest.raises(KeyboardInterrupt), writer.finishing(said.append):
        raise KeyboardInterrupt
    assert said == ["the last checkpoint was not written: the disk is full"]


def same(run: Run, whole: Run) -> None:
    """The same losses and weights."""
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in whole.metrics]
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in run.weights.items())


def test_a_control_group_leaves_what_its_page_cache_holds(tmp_path: Path) -> None:
    """Guard: ``held`` in processes._left_in; the checkpoints themselves fill that cache."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\nshmem 50\n")
    assert _left_in(tmp_path) == 750
