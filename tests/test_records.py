"""Records: what a stage made counts as long as it is what it was, and nothing in a record leads out of its run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from ftkit import records
from ftkit.errors import StageError
from ftkit.files import sha256, tree_digest
from ftkit.platforms.local import store
from ftkit.records import Record

MADE = {
    "train/adapter/adapter_model.safetensors": "weights",
    "train/adapter/adapter_config.json": '{"lora_alpha": 16}',
    "merged/chat_template.jinja": "{{ a }}",
}


def record_of(run: Path, **changed: Any) -> Record:
    known: dict[str, Any] = {
        "stage": "train",
        "fingerprint": "f",
        "settings": {},
        "inputs": {},
        "files": {name: (run / name).stat().st_size for name in MADE},
        "digests": {name: sha256(run / name) for name in MADE},
        "result": {"folder": "train/adapter", "last_loss": 1.0, "global_step": 3},
        "versions": {},
        "seconds": 1.0,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**known, **changed})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name, text in MADE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train/adapter/adapter_model.safetensors", "weighty"),
        ("train/adapter/adapter_config.json", '{"lora_alpha": 99}'),
        ("merged/chat_template.jinja", "{{ b }}"),
    ],
)
def test_a_change_that_keeps_the_size_is_seen_before_a_file_is_used(run: Path, name: str, content: str):
    """Guard: digests in Record.changed_files."""
    record = record_of(run)
    assert record.changed_files(run) == []
    times = (run / name).stat()
    (run / name).write_text(content)
    os.utime(run / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert record.changed_files(run) == [name]
    assert record.changed_files(run, read=False) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"result": {"folder": "../../../secret", "last_loss": 1.0, "global_step": 3}},
        {"result": {"folder": "/etc", "last_loss": 1.0, "global_step": 3}},
        {"result": {"last_loss": 1.0, "global_step": 3}},
        {"result": {"folder": "train/adapter", "last_loss": "low", "global_step": 3}},
        {"result": None},
        {"files": {"../outside": 5}},
        {"digests": {"/etc/passwd": "0"}},
        {"fingerprint": None},
        {"stage": "merge"},
    ],
)
def test_a_record_that_is_none_is_told_with_its_cure(run: Path, changed: dict[str, Any]):
    path = records.path_of(run, "train")
    path.write_text(json.dumps({**asdict(record_of(run)), **changed}))
    with pytest.raises(StageError, match="the record of train cannot be read") as error:
        records.read(run, "train")
    assert error.value.cure.startswith("rm ") and "stage=train" in error.value.cure


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "[" * 100_000, "\0", '{"stage": "train"}'])
def test_a_file_that_is_no_record(run: Path, content: str):
    records.path_of(run, "train").write_text(content)
    with pytest.raises(StageError, match="the record of train cannot be read"):
        records.read(run, "train")


@pytest.mark.parametrize("name", ["train/../../../X", "train/../record.json"])
def test_what_a_job_has_left_stays_in_its_run(run: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Guard: is_below in jobs.fetch."""
    from ftkit.platforms.azureml import jobs
    from ftkit.platforms.azureml.known_jobs import Job

    files = [(PurePosixPath(name), b"{}")]
    monkeypatch.setattr(jobs, "Datastore", lambda _: SimpleNamespace(small_files=lambda *_: files))
    before = tree_digest(run)
    with pytest.raises(StageError, match="leave its folder"):
        jobs.fetch(
            SimpleNamespace(),
            "run",
            run,
            Job(name="j", stages=("train",), fingerprint="f", store="store"),
            "azureml://x",
        )
    assert tree_digest(run) == before and not (run.parent / "X").exists()


def test_the_code_that_a_job_gets_holds_nothing_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guard: left_out in submission.snapshot."""
    from ftkit.config.resolve import resolve
    from ftkit.platforms.azureml import submission

    package, conf = tmp_path / "ftkit", tmp_path / "conf"
    shutil.copytree(submission.PACKAGE / "config", package / "config")
    (package / "assets").mkdir()
    for private in (package / ".env", package / ".ipynb_checkpoints" / "a.py", conf / "local" / "default.yaml"):
        private.parent.mkdir(parents=True, exist_ok=True)
        private.write_text("SECRET")
    (tmp_path / "secret").write_text("SECRET")
    (package / "link.py").symlink_to(tmp_path / "secret")
    (conf / "config.yaml").write_text("run: {}")
    monkeypatch.setattr(submission, "PACKAGE", package)
    monkeypatch.setattr(submission, "shipped_conf", lambda: conf)
    with submission.snapshot(resolve(["experiment=tiny", "model.pretrained_model_name_or_path=/m"])) as code:
        sent = {path.relative_to(code).as_posix(): path.read_text() for path in code.rglob("*") if path.is_file()}
    assert "SECRET" not in "".join(sent.values())
    assert "ftkit/config/schema.py" in sent and "ftkit/conf/config.yaml" in sent


def test_a_disk_that_fills_up_while_a_version_is_copied_is_told_in_a_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(StageError, match="the disk is full"):
        store.register(
            tmp_path / "s", "models", "m", run, tree_digest(run), type="custom_model", tags={}, wait=[].append
        )
    assert [path.name for path in (tmp_path / "s" / "models" / "m").iterdir()] == [".lock"]
