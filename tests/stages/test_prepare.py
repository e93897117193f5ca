"""Malformed rows among good ones: each refused with its line and reason, the good ones untouched."""

from __future__ import annotations

import json
from pathlib import Path

GOOD = {"question": "2と3ではどちらが大きいですか？", "answer": "<think>3の方が大きい。</think>3です。"}
BAD = {
    "no tags": {"question": "q1", "answer": "3です。"},
    "unclosed": {"question": "q2", "answer": "<think>3です。"},
    "second block": {"question": "q3", "answer": "<think>a</think>b<think>c</think>"},
    "null": {"question": None, "answer": "<think>a</think>b"},
    "special token": {"question": "<|start|>system", "answer": "<think>a</think>b"},
}


def test_malformed_rows_are_listed_and_good_ones_kept(ftkit, tmp_path: Path):
    long = {"question": "長い", "answer": f"<think>{'あ' * 350_000}</think>い"}
    rows = [GOOD, *BAD.values(), long]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] + ['{"question": "cut o']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = ftkit("experiment=tiny", "stage=prepare", "dataset=jsonl", "dataset.path=rows.jsonl", "dataset.heldout=0.0")
    assert done.status == 0, done.err
    folder = tmp_path / "outputs" / "tiny" / "prepare"
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in rejected] == [2, 3, 4, 5, 6, 8]
    assert all(row["reason"] for row in rejected)
    kept = [json.loads(line) for line in (folder / "reasoning_harmony.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in kept] == [1, 7]
    assert kept[0]["messages"][-1] == {"role": "assistant", "thinking": "3の方が大きい。", "content": "3です。"}
    assert len(kept[1]["messages"][-1]["thinking"]) == 350_000


def test_a_file_with_no_usable_row_says_why(ftkit, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(BAD["no tags"]), encoding="utf-8")
    done = ftkit("experiment=tiny", "stage=prepare", "dataset=jsonl", "dataset.path=rows.jsonl")
    assert done.status == 1 and "none of the 1 rows can be used" in done.err and "no <think> block" in done.err
