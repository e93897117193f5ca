"""Rows that generate writes are read by the settings that read the first ones, and are the same conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.prepared import prepare_rows

from ftkit.config.resolve import resolve
from ftkit.generation.layout import row_of
from ftkit.generation.questions import Questions, questions_of

THOUGHT = "<think>1+1=2です。</think>2です。"
TOOLS = [{"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}}]
CHAT = [
    {"role": "system", "content": "敬語で答えてください。"},
    {"role": "user", "content": "1+1は？"},
    {"role": "assistant", "thinking": "1+1=2です。", "content": "2です。"},
    {"role": "user", "content": "それに3をたすと？"},
    {"role": "assistant", "thinking": "2+3=5です。", "content": "5です。"},
]
LAYOUTS: list[tuple[str, list[dict[str, Any]], list[str]]] = [
    ("jsonl", [{"question": "1+1は？", "answer": THOUGHT, "kind": "sum"}], []),
    ("jsonl", [{"question": "1+1は？", "answer": THOUGHT}], ["dataset.persona=明るく。"]),
    (
        "alpaca",
        [
            {
                "instruction": "たしてください。",
                "input": "1と1",
                "output": THOUGHT,
                "system": "短く。",
            },
            {
                "instruction": "1+1は？",
                "output": THOUGHT,
                "history": [["やあ", "こんにちは"]],
            },
        ],
        ["dataset.thinking=optional"],
    ),
    (
        "prompt-completion",
        [{"prompt": "1+1は？", "completion": "2です。", "reasoning": "1+1=2です。", "lang": "English"}],
        ["dataset.columns.thinking=reasoning", "dataset.columns.reasoning_language=lang"],
    ),
    ("messages", [{"messages": CHAT, "tools": TOOLS}], ["dataset.persona=明るく。"]),
    (
        "sharegpt",
        [
            {
                "conversations": [
                    {"from": "human", "value": "1+1は？"},
                    {"from": "gpt", "value": THOUGHT},
                ],
                "system": "reasoning language: Chinese\n\n短く。",
            }
        ],
        [],
    ),
]


@pytest.mark.parametrize(
    ("option", "rows", "overrides"), LAYOUTS, ids=[f"{i} {option}" for i, (option, *_) in enumerate(LAYOUTS)]
)
def test_a_row_goes_round(option: str, rows: list[dict[str, Any]], overrides: list[str], tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    first = prepare_rows(rows, tmp_path / "first", option, *overrides)
    assert len(first.conversations) == len(rows), first.rejected
    found = read(first.folder, option, overrides, tmp_path)
    dataset = configured(option, overrides, tmp_path)
    again = prepare_rows([row_of(c, dataset) for c in found.own], tmp_path / "second", option, *overrides)
    kept = ("messages", "tools")
    assert [{k: row.get(k) for k in kept} for row in again.conversations] == [
        {k: row.get(k) for k in kept} for row in first.conversations
    ], again.rejected
    assert [row["input_ids"] for row in again.tokens] == [row["input_ids"] for row in first.tokens]


def test_of_a_chat_the_last_answer_is_asked_for(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]}
    rows = [{"messages": CHAT}, {"messages": [CHAT[1], call], "tools": TOOLS}, {"messages": CHAT}]
    first = prepare_rows(rows, tmp_path, "messages", "dataset.thinking=optional")
    found = read(first.folder, "messages", [], tmp_path)
    (item,) = found.items
    assert (item.question, item.expected) == ("それに3をたすと？", "5です。")
    assert found.left_out == {"the answer is a call of a tool": 1, "the same question again": 1}


def configured(option: str, overrides: list[str], folder: Path) -> Any:
    (folder / "rows.jsonl").touch()
    return resolve(["experiment=tiny", f"dataset={option}", f"dataset.path={folder}/rows.jsonl", *overrides]).dataset


def read(prepared: Path, option: str, overrides: list[str], folder: Path) -> Questions:
    (path,) = prepared.glob("*harmony.parquet")
    return questions_of(path, configured(option, overrides, folder), None, None)
