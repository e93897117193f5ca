"""Files: nothing half-written is taken for whole, what a killed process left goes, nothing outside a folder is read."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit import files
from ftkit.errors import StageError
from ftkit.processes import runs_since


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_goes_and_what_is_being_written_stays(tmp_path: Path, ended: int):
    left = [tmp_path / f".merged.{ended}.partial", tmp_path / "train" / f".loss.png.{ended}.partial"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
    (left[0] / "deep").mkdir(parents=True)
    left[1].write_text("half")
    stays = tmp_path / f".record.json.{os.getpid()}.partial"
    stays.write_text("half")
    (tmp_path / "model.partial").write_text("the user's")
    assert sorted(files.remove_left_behind(tmp_path)) == sorted(left)
    assert not any(path.exists() for path in left)
    assert stays.exists() and (tmp_path / "model.partial").exists()


def test_a_process_that_was_given_a_number_again_is_another_one():
    assert runs_since(os.getpid(), time.time())
    assert not runs_since(os.getpid(), time.time() - 10**6)


def test_a_version_that_came_to_be_meanwhile_is_not_replaced(tmp_path: Path):
    """Guard: written_once in files."""
    target = tmp_path / "1"
    with pytest.raises(FileExistsError), files.written_once(target) as aside:
        aside.mkdir()
        (aside / "mine").write_text("mine")
        target.mkdir()
        (target / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["1", "theirs"]


def test_a_folder_is_replaced_whole(tmp_path: Path):
    target = tmp_path / "merged"
    target.mkdir()
    (target / "old").write_text("old")
    with files.written_aside(target) as aside:
        aside.mkdir()
        (aside / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "new"]


def test_errors_that_shutil_gathers_as_texts_are_told_as_what_they_are(tmp_path: Path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    gathered = shutil.Error([(tmp_path / "a", tmp_path / "b", str(full)), (tmp_path / "c", tmp_path / "d", str(full))])
    for error in (gathered, shutil.Error([("a", "b", str(gathered))])):
        assert files.explained(error, tmp_path).what.startswith("the disk is full")
    assert files.explained(gathered, tmp_path).where == str(tmp_path / "b")


def test_a_limit_on_files_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 << 20, 5 << 20))
    error = files.explained(OSError(errno.EFBIG, "File too large"), tmp_path)
    assert "5.0 MiB" in error.what and "ulimit -f" in error.cure


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", "a\0b"])
def test_names_that_leave_their_folder(name: str):
    assert not files.is_below(name)
    assert files.is_below("train/adapter") and files.is_below("a..b")


def test_links_are_not_followed_out_of_a_folder(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_text("w")
    (folder / "again").symlink_to("weights")
    files.copy_tree(folder, tmp_path / "copy")
    assert (tmp_path / "copy" / "again").read_text() == "w"
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(StageError, match="leads out of its folder"):
        files.copy_tree(folder, tmp_path / "second")


def test_the_hubs_cache_is_one_folder(tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    blob = tmp_path / "models--a--b" / "blobs" / "f00"
    for path in (snapshot, blob.parent):
        path.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    files.check_links(snapshot)
