"""plan and prepare where Python lacks what only POSIX has, as on Windows; a lock means the same there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, read_until, run_ftkit

HOLDER = """
import sys
from pathlib import Path
from ftkit.locks import locked
with locked(Path(sys.argv[1]), "stage=train of mine", wait=lambda line: print(line, flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes whose Python has no more than that of Windows."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(REPOSITORY / "tests" / "helpers" / "like_windows.py", folder / "sitecustomize.py")
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY))), "PYTHONWARNDEFAULTENCODING": "1"}


def test_plan_and_prepare_use_nothing_that_only_posix_has(tmp_path: Path, windows: dict[str, str]):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "outputs" / "tiny" / f".parts.{ended.pid}.partial").mkdir(parents=True)
    sample = [sys.executable, "-m", "ftkit.data.sample", "--rows", "4001", "--seed", "1", "--out", "rows.jsonl"]
    subprocess.run(sample, cwd=tmp_path, env=os.environ | windows, check=True)
    rows = ("dataset=jsonl", "dataset.path=rows.jsonl", "dataset.num_proc=2", "deployment.port=0")
    done = run_ftkit("experiment=tiny", "stage=plan,prepare", *rows, cwd=tmp_path, **windows)
    assert done.status == 0, done
    assert "4,001 rows" in done.out and "no problems" in done.out and "was cut off" in done.out, done
    ours = str(REPOSITORY / "ftkit")
    bare = [line for line in done.err.splitlines() if "EncodingWarning" in line and line.startswith(ours)]
    assert bare == [], "a file is read in the system's encoding"
    again = run_ftkit("experiment=tiny", "stage=prepare", *rows, cwd=tmp_path)
    assert "up to date" in again.out, "the same run has another fingerprint elsewhere"


def test_help_uses_nothing_that_only_posix_has(tmp_path: Path, windows: dict[str, str]):
    done = run_ftkit("--help", "lora", cwd=tmp_path, **windows)
    assert done.status == 0 and "lora.r" in done.out, done


@contextmanager
def holder(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, env=os.environ | environment, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_windows_lock_names_its_owner_refuses_waits_and_ends_with_its_process(tmp_path: Path, windows: dict[str, str]):
    run = tmp_path / "outputs" / "tiny"
    with holder(run, windows) as first:
        read_until(first, "held")
        refused = run_ftkit("experiment=tiny", "stage=prepare", cwd=tmp_path, **windows)
        assert refused.status == 1 and f"stage=train of mine (process {first.pid} on" in refused.err, refused
        with holder(run, windows) as second:
            assert f"process {first.pid}" in read_until(second, "waiting for")
            first.kill()
            read_until(second, "held")
