"""One command at a time: refused at once or made to wait, with a word on who; the dead hold nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.command import read_until

from ftkit.config.resolve import resolve
from ftkit.console import Report
from ftkit.errors import StageError
from ftkit.locks import locked
from ftkit.pipeline import runner

HOLDER = """
import signal, sys
from pathlib import Path
from ftkit.locks import locked
with locked(Path(sys.argv[1]), "stage=train of mine"):
    print("held", flush=True)
    signal.pause()
"""


TRAINER = """
import sys
from pathlib import Path
from ftkit.config.resolve import resolve
from ftkit.locks import locked
from ftkit.training import launch
folder = Path(sys.argv[1])
with locked(folder, "stage=train of mine"):
    config = resolve(["experiment=tiny", "compute.gpus_per_node=2"])
    launch.train(config, tokens=folder, out=folder, checkpoints=folder, frozen=folder / "config.yaml")
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        read_until(process, "held")
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_command_is_told_who_works_and_takes_over_from_the_dead(tmp_path: Path):
    with held_elsewhere(tmp_path) as other:
        with pytest.raises(StageError) as refused, locked(tmp_path, "stage=prepare"):
            pass
        assert "stage=train of mine" in refused.value.what and str(other.pid) in refused.value.what
        assert f"kill {other.pid}" in refused.value.cure and "run.name=" in refused.value.cure
        other.kill()
        other.wait()
        with locked(tmp_path, "stage=prepare"):
            pass


def test_trainings_processes_hold_the_lock_when_their_command_is_killed(tmp_path: Path):
    """Guard: pass_fds in launch.train. A torch stands in that holds out until its input ends."""
    stand_in = tmp_path / "torch" / "distributed"
    stand_in.mkdir(parents=True)
    for package in (stand_in, stand_in.parent):
        (package / "__init__.py").touch()
    (stand_in / "run.py").write_text("import sys\nprint('working', flush=True)\nsys.stdin.read()\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as training:
        read_until(training, "working")
        training.kill()
        training.wait()
        with pytest.raises(StageError, match="stage=train of mine"), locked(tmp_path, "stage=prepare"):
            pass
    with locked(tmp_path, "stage=prepare", wait=lambda line: None):
        pass


def test_whoever_may_wait_waits_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is told once, and sleeps then until the lock is free."""
    said, sleeps_or_has_it, real = [], threading.Event(), fcntl.flock

    def flock(file, how: int) -> None:
        if not how & (fcntl.LOCK_NB | fcntl.LOCK_UN):
            sleeps_or_has_it.set()
        real(file, how)

    def second() -> None:
        with locked(tmp_path, "registering", wait=said.append):
            said.append("mine")
            sleeps_or_has_it.set()

    monkeypatch.setattr(fcntl, "flock", flock)

    with locked(tmp_path, "publishing rows"):
        thread = threading.Thread(target=second)
        thread.start()
        assert sleeps_or_has_it.wait(60)
        assert len(said) == 1 and "publishing rows" in said[0]
    thread.join(60)
    assert said[1:] == ["mine"]


def test_on_a_file_system_without_locks_one_machine_still_keeps_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = fcntl.flock

    def flock(file, how: int) -> None:
        if Path(file.name).is_relative_to(tmp_path / "network"):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        locked(tmp_path / "network", "stage=train"),
        pytest.raises(StageError, match="stage=train"),
        locked(tmp_path / "network", "stage=prepare"),
    ):
        pass


def test_stages_that_write_need_the_run_to_themselves_and_the_others_do_not(
    in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
):
    with locked(Path("outputs/tiny"), "stage=train of tiny"):
        with pytest.raises(StageError, match="stage=train of tiny"):
            runner.run(resolve(["experiment=tiny", "stage=prepare"]))
        runner.run(resolve(["experiment=tiny", "stage=plan"]))
        runner.run(resolve(["experiment=tiny", "stage=teardown"]))
        runner.run(resolve(["experiment=tiny", "stage=environment", "run.name=another"]))
    assert not Path("outputs/tiny/config.yaml").exists(), "settings of another command would be frozen"


def test_what_a_killed_command_was_writing_goes_with_the_next_one(
    in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
):
    """Guard: remove_left_behind in runner._alone; a merged model of 20 billion parameters has 40 GB."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    asset = Path("outputs/_workspace/models/m")
    left = [Path("outputs/tiny", f".merged.{killed.pid}.partial"), asset / f".1.{killed.pid}.partial"]
    for folder in left:
        folder.mkdir(parents=True)
    with locked(asset, "registering m"):
        pass
    config = resolve(["experiment=tiny", "stage=prepare"])
    with runner._alone(config, Report(config)):
        pass
    said = capsys.readouterr().out
    for folder in left:
        assert not folder.exists() and f"{folder} was cut off while it was written; removed" in said


def test_several_processes_of_one_training_do_not_shut_each_other_out(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guard: first_process in runner._alone."""
    monkeypatch.setenv("RANK", "1")
    with locked(Path("outputs/tiny"), "stage=train of tiny, rank 0"):
        runner.run(resolve(["experiment=tiny", "stage=prepare"]))
