"""A training run on the small model that is killed, stopped, or finds no room: what stays, and how it goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.runs import Run, kill_at
from helpers.small_model import small_run
from safetensors import SafetensorError

from ftkit.errors import Interrupted, StageError
from ftkit.training import train as training
from ftkit.training.checkpoints import MARKER, mark_complete, newest_complete
from ftkit.training.train import TrainResult, train


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    run: Run, whole: tuple[Run, TrainResult, list[str]]
) -> None:
    """Killed in the second epoch. Guards: save_only_model and ignore_data_skip in sft_config, and _resume_point."""
    kill_at(run, "step 11/")
    for damaged in ("checkpoint-10", "checkpoint-11"):
        shutil.copytree(run.checkpoints / "checkpoint-9", run.checkpoints / damaged)
    (run.checkpoints / "checkpoint-10" / MARKER).unlink()
    optimizer = run.checkpoints / "checkpoint-11" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1] + b"?")
    assert not (run.out / "adapter").exists()

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("resuming"):
            assert not (run.checkpoints / "checkpoint-10").exists(), "it takes room that the next one may need"

    result = train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    assert f"{run.checkpoints / 'checkpoint-10'} was cut off while it was written; removed" in said
    assert f"{run.checkpoints / 'checkpoint-11'} was changed since it was written; removed" in said
    assert f"resuming from step 9 of 16 ({run.checkpoints / 'checkpoint-9'})" in said
    assert (result.resumed_from, result.global_step, result.tokens) == (9, 16, whole[1].tokens)
    for key in ("step", "loss", "learning_rate", "grad_norm", "tokens", "loss_tokens"):
        assert [line[key] for line in run.metrics] == [line[key] for line in whole[0].metrics], key
    expected = whole[0].weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in run.weights.items())


def test_a_run_that_was_cut_off_before_it_saved_the_adapter_only_saves_it(run: Run, model_folder: Path) -> None:
    """Guard: ``done >= planned`` in train._to_the_end; else the trainer takes one more step, amid an epoch."""
    run = replace(run, config=small_run(model_folder, "sft.max_steps=10"))
    first, _ = run.train()
    weights, metrics = run.weights, run.metrics
    shutil.rmtree(run.out)
    result, said = run.train()
    assert result.resumed_from == result.global_step == 10 and not any(line.startswith("step") for line in said)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.weights.items())
    assert (result.last_loss, run.metrics) == (first.last_loss, metrics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_next_run_goes_on_from_there(
    run: Run, whole: tuple[Run, TrainResult, list[str]], number: signal.Signals
) -> None:
    """A stopped run is no finished run. Guards: stop.listening in train._to_the_end, and _Guard.on_step_end."""

    def say(line: str) -> None:
        if line.startswith("step  4/"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped after step 5 of 16") as caught:
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    assert caught.value.exit_status == 128 + number
    assert not (run.out / "adapter").exists()
    result, _ = run.train()
    assert result.resumed_from == 5
    assert all(torch.equal(tensor, whole[0].weights[name]) for name, tensor in run.weights.items())


def test_a_second_ctrl_c_stops_at_once(run: Run) -> None:
    def say(line: str) -> None:
        if line.startswith("step  4/"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="goes on from step 3"):
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupt(run: Run, step: int) -> None:
    """Train, and end it with SIGTERM after a step, which is saved."""

    def say(line: str) -> None:
        if line.startswith(f"step {step:>2}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)


def test_a_checkpoint_that_holds_a_program_is_refused_and_not_run(run: Run, in_empty_folder: Path) -> None:
    """Guard: UnpicklingError in train._to_the_end."""
    interrupt(run, 4)
    newest, _ = newest_complete(run.checkpoints)
    assert newest is not None
    (newest / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'touch was-run'\ntR.")
    mark_complete(newest)
    with pytest.raises(StageError, match="holds what is no state of a training") as error:
        run.train()
    assert error.value.cure.startswith("rm -r ") and not Path("was-run").exists()


def test_training_that_ends_early_is_no_success(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the comparison of global_step with max_steps in train._to_the_end."""
    from ftkit.training.methods.sft import SftTrainer

    monkeypatch.setattr(
        SftTrainer, "before_optimizer_step", lambda self: setattr(self.control, "should_training_stop", True)
    )
    with pytest.raises(StageError, match="training ended at step 1 of 16"):
        run.train()
    assert not (run.out / "adapter").exists()


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing beyond a size fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [20_000, 90_000], ids=["adapter", "optimizer"])
def test_a_disk_that_fills_up_is_named_and_the_last_good_checkpoint_stays(run: Run, size: int) -> None:
    """Guards: ``saving``, and that older checkpoints go only after the marker of the new one (keep_newest)."""

    def stop(line: str) -> None:
        if line.startswith("step  3/"):
            os.kill(os.getpid(), signal.SIGTERM)

    one = replace(
        run, config=run.config.model_copy(update={"sft": run.config.sft.model_copy(update={"save_total_limit": 1})})
    )
    with pytest.raises(Interrupted):
        train(one.config, tokens=one.tokens, out=one.out, checkpoints=one.checkpoints, say=stop)
    newest, _ = newest_complete(one.checkpoints)
    assert newest is not None
    with files_no_larger_than(size), pytest.raises(StageError, match=r"no file may grow beyond .* MiB") as caught:
        one.train()
    assert "checkpoint-6" in caught.value.where
    assert newest_complete(one.checkpoints) == (newest, [])
    result, _ = one.train()
    assert result.resumed_from == 4


def test_the_last_good_checkpoint_stays_until_the_next_one_is_marked(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: save_total_limit=None in sft_config, with keep_newest after the marker; TRL would delete before it."""
    from ftkit.training import trainer

    mark = trainer.mark_complete

    def full(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-6":
            raise OSError(errno.ENOSPC, "No space left on device")
        mark(checkpoint)

    monkeypatch.setattr(trainer, "mark_complete", full)
    one = replace(run, config=small_run(model_folder, "sft.save_total_limit=1"))
    with pytest.raises(StageError, match="the disk is full"):
        one.train()
    assert newest_complete(one.checkpoints) == (one.checkpoints / "checkpoint-3", [])


def test_an_adapter_that_cannot_be_written_whole_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after the last step. Guards: ``saving`` and ``written_aside`` in train._save."""
    write = training.write_weights

    def full(model: torch.nn.Module, folder: Path, *arguments: object) -> None:
        write(model, folder, *arguments)
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(training, "write_weights", full)
    with pytest.raises(StageError, match="the disk is full") as caught:
        run.train()
    assert caught.value.where == str(run.out / "adapter")
    assert not [path for path in run.out.iterdir() if "adapter" in path.name]
    monkeypatch.undo()
    assert run.train()[0].resumed_from == 16


def test_folders_that_cannot_be_written_are_named(run: Run) -> None:
    run.folder.mkdir()
    run.out.write_text("a file where a folder should be")
    with pytest.raises(StageError, match="cannot be written") as caught:
        run.train()
    assert str(run.out) in caught.value.where


def test_new_logging_and_saving_steps_hold_after_resuming(run: Run, model_folder: Path) -> None:
    """The checkpoint carries its own; they are no reason to begin anew."""
    interrupt(run, 3)
    other = replace(run, config=small_run(model_folder, "sft.logging_steps=4", "sft.save_steps=10"))
    other.train()
    assert [line["step"] for line in other.metrics] == [1, 2, 3, 4, 8, 10, 12, 16]
    assert sorted(p.name for p in other.checkpoints.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-16"]


def test_force_trains_anew_what_was_finished_and_goes_on_with_what_was_not(run: Run) -> None:
    """Guard: ``anew`` in _resume_point."""
    short = replace(
        run,
        config=small_run(Path(run.config.model.pretrained_model_name_or_path), "sft.max_steps=4", "sft.save_steps=2"),
    )
    first, _ = short.train()
    forced = replace(short, config=short.config.model_copy(update={"force": True}))
    again, said = forced.train()
    assert again.resumed_from is None and [line["step"] for line in short.metrics] == [1, 2, 3, 4]
    assert any(line.startswith("force=true trains again") for line in said) and again.last_loss == first.last_loss
    shutil.rmtree(short.checkpoints / "checkpoint-4")
    assert forced.train()[0].resumed_from == 2
