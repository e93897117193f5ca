"""Rows that were edited after prepare, or after publish: the stages that go on from them say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftkit.config.resolve import resolve
from ftkit.pipeline.lineage import changed_rows

TINY = ("experiment=tiny", "dataset=jsonl", "dataset.path=rows.jsonl", "dataset.heldout=0")
ROW = {"question": "2と3ではどちらが大きいですか？", "answer": "<think>3の方が大きい。</think>3です。"}


def test_publish_and_train_say_that_the_rows_have_changed_since_prepare(
    ftkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    assert ftkit(*TINY, "stage=prepare").status == 0
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW))
    done = ftkit(*TINY, "stage=publish")
    assert done.status == 0 and "rows.jsonl has changed since prepare; stage=prepare,publish takes" in done.out, (
        done.err
    )
    monkeypatch.chdir(tmp_path)
    said = "rows.jsonl has changed since prepare; stage=prepare,publish,train takes the new rows"
    assert changed_rows(resolve([*TINY, "stage=train"])) == said
    assert changed_rows(resolve([*TINY, "stage=prepare,publish,train"])) == ""


def test_a_published_version_that_was_changed_is_not_up_to_date(ftkit, tmp_path: Path):
    """Guards: still_there in publish, and Local.holds. The size stays the same."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    assert ftkit(*TINY, "stage=prepare,publish").status == 0
    (published,) = (tmp_path / "outputs" / "_workspace" / "data").rglob("*.jsonl")
    published.chmod(0o644)
    published.write_text(published.read_text().replace("3", "4"))
    done = ftkit(*TINY, "stage=publish")
    assert "is gone or changed; making a new version" in done.out and ":2 (new version)" in done.out, done
