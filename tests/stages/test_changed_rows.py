"""Rows that were edited after prepare: the stages that go on from it say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftkit.config.resolve import resolve
from ftkit.pipeline.lineage import changed_rows

ROW = {"question": "2と3ではどちらが大きいですか？", "answer": "<think>3の方が大きい。</think>3です。"}


def test_publish_and_train_say_that_the_rows_have_changed_since_prepare(
    ftkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    tiny = ("experiment=tiny", "dataset=jsonl", "dataset.path=rows.jsonl", "dataset.heldout=0")
    assert ftkit(*tiny, "stage=prepare").status == 0
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW))
    done = ftkit(*tiny, "stage=publish")
    assert done.status == 0 and "rows.jsonl has changed since prepare; stage=prepare,publish takes" in done.out, (
        done.err
    )
    monkeypatch.chdir(tmp_path)
    said = "rows.jsonl has changed since prepare; stage=prepare,publish,train takes the new rows"
    assert changed_rows(resolve([*tiny, "stage=train"])) == said
    assert changed_rows(resolve([*tiny, "stage=prepare,publish,train"])) == ""
