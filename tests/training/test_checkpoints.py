"""A checkpoint whose writing was cut off is never taken for a whole one. The guard is the marker, written last."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from helpers.small_model import small_run
from safetensors import SafetensorError

from ftkit.errors import StageError
from ftkit.training import trainer
from ftkit.training.checkpoints import MARKER, is_complete, keep_newest, mark_complete, newest_complete, saving
from ftkit.training.train import train


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "sub").mkdir(parents=True)
    (path / "adapter.safetensors").write_bytes(b"a" * 100)
    (path / "sub" / "optimizer.pt").write_bytes(b"b" * 50)
    if whole:
        mark_complete(path)
    return path


def test_the_newest_whole_checkpoint_is_found_by_number_and_the_others_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    hundred = checkpoint(tmp_path, 100)
    cut_off = checkpoint(tmp_path, 110, whole=False)
    (tmp_path / "checkpoint-final").mkdir()
    assert newest_complete(tmp_path) == (hundred, [cut_off])
    assert newest_complete(tmp_path / "none") == (None, [])


def test_training_does_not_go_on_from_a_checkpoint_that_was_changed(tmp_path: Path) -> None:
    """Guard: ``read`` in newest_complete. The size stays the same."""
    good, bad = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    (bad / "sub" / "optimizer.pt").write_bytes(b"b" * 49 + b"c")
    assert newest_complete(tmp_path, read=True) == (good, [bad])


@pytest.mark.parametrize("damage", ["shorter", "gone", "marker cut off", "marker of another kind"])
def test_a_damaged_checkpoint_does_not_count(tmp_path: Path, damage: str) -> None:
    good, bad = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    optimizer, marker = bad / "sub" / "optimizer.pt", bad / MARKER
    {
        "shorter": lambda: optimizer.write_bytes(b"b" * 49),
        "gone": optimizer.unlink,
        "marker cut off": lambda: marker.write_text(marker.read_text()[:20]),
        "marker of another kind": lambda: marker.write_text("[]"),
    }[damage]()
    assert newest_complete(tmp_path) == (good, [bad])


def test_only_whole_checkpoints_count_towards_the_limit(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 25, whole=False)
    checkpoint(tmp_path, 40, whole=False)
    keep_newest(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-30", "checkpoint-40"]
    assert is_complete(tmp_path / "checkpoint-20")


def test_nothing_is_deleted_while_no_checkpoint_is_whole(tmp_path: Path) -> None:
    left = checkpoint(tmp_path, 10, whole=False)
    keep_newest(tmp_path, 1)
    assert left.is_dir()


def test_a_deletion_that_is_cut_off_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the marker goes first in keep_newest."""
    old = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20)

    def killed(folder: Path, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ftkit.training.checkpoints.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_newest(tmp_path, 1)
    assert old.is_dir() and not is_complete(old)


def test_the_last_step_of_an_epoch_is_saved_once_with_its_evaluation(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: _saves_after_epoch in _Guard; else the best evaluation has the checkpoint that the step has left, which
    may be the only whole one, removed and written again."""
    written: list[str] = []

    def seal(checkpoint: Path) -> None:
        written.append(checkpoint.name)
        mark_complete(checkpoint)

    monkeypatch.setattr(trainer, "mark_complete", seal)
    config = small_run(model_folder, "sft.eval_strategy=epoch", "sft.save_steps=8", "sft.num_train_epochs=1")
    train(config, tokens=token_file, out=tmp_path, checkpoints=tmp_path / "c", say=lambda _: None)
    assert written == ["checkpoint-8"]
    assert "eval_loss" in (tmp_path / "c" / "checkpoint-8" / "trainer_state.json").read_text()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        SafetensorError(f"Error while serializing: I/O error: Disk quota exceeded (os error {errno.EDQUOT})"),
    ],
    ids=str,
)
def test_a_full_disk_is_named_whichever_library_meets_it(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(StageError, match=r"the disk is full: .* GiB are free") as caught,
        saving(tmp_path / "checkpoint-3"),
    ):
        raise error
    assert "checkpoint-3" in caught.value.where


def test_a_checkpoint_is_written_when_the_last_one_is_old_enough(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by 4 minutes a step. Guard: saving_is_due in _Guard.on_step_end."""
    now = [0.0]
    monkeypatch.setattr(trainer, "clock", lambda: now[0])
    overrides = ["sft.save_minutes=10", "sft.save_steps=100", "sft.save_total_limit=9", "sft.max_steps=9"]
    config = small_run(model_folder, *overrides)

    def say(line: str) -> None:
        now[0] += 240 * line.startswith("step")

    train(config, tokens=token_file, out=tmp_path / "train", checkpoints=tmp_path / "checkpoints", say=say)
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 8, 9]


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), saving(tmp_path):
        raise RuntimeError("shapes differ")
