"""Rows of every layout with values, keys and columns that nobody expects there, by a seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

OPTIONS = ("jsonl", "prompt-completion", "alpaca", "messages", "sharegpt")
TOOL = {"type": "function", "function": {"name": "f", "description": "天気", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CHAT = [
    {"role": "system", "content": "秘書です。"},
    {"role": "user", "content": "天気は？"},
    {"role": "assistant", "content": "", "thinking": "調べる。", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "晴れ"},
    {"role": "assistant", "content": "<think>晴れ。</think>晴れです。"},
]
SHARED = [
    {"from": "human", "value": "天気は？"},
    {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
    {"from": "observation", "value": "晴れ"},
    {"from": "gpt", "value": "<think>晴れ。</think>晴れです。"},
]
SOUND: dict[str, dict[str, Any]] = {
    "jsonl": {"question": "2+2は？", "answer": "<think>\n足す。\n</think>\n\n4です。"},
    "prompt-completion": {"prompt": CHAT[:2], "completion": [CHAT[-1]]},
    "alpaca": {
        "instruction": "訳して。",
        "input": "りんご",
        "output": "<think>訳す。</think>apple",
        "history": [["a", "b"]],
    },
    "messages": {"messages": CHAT, "tools": [TOOL]},
    "sharegpt": {"conversations": SHARED, "system": "秘書です。", "tools": json.dumps([TOOL])},
}
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, float("nan"), 2**70, "", " ", "　", "\n", [], {}, [[]], [None], {"": None}),
    *("\0", "\x1b[31m", "\x85", "\ufffd", "\ud83d", "\u202e逆", "\u200b", "a\r\nb", "<|end|>", "<|call|>", "‹|end|›"),
    *("<think>", "</think>", "<think></think>", "<think>a</think>b</think>c"),
    *("<THINK>a</THINK>b", "<reasoning>a</reasoning>b"),
    *("<tool_call>{}</tool_call>", '<tool_call>\n{"name": "f", "arguments": {}}'),
    *("<tools>[]</tools>", "[]", "{", '{"a": 1}'),
    *("reasoning language: French", "user", "assistant", "tool", "analysis", "false", "あ" * 5_000, "💥" * 50),
    *([{"type": "text", "text": "q"}], [{"type": "image_url", "image_url": {"url": "x"}}]),
    *({"role": "user"}, TOOL, CALL),
]  # fmt: skip
KEYS = [
    *("role", "content", "thinking", "reasoning", "reasoning_content", "weight", "train", "loss"),
    *("channel", "recipient"),
    *("tool_calls", "function_call", "tool_call_id", "name", "refusal", "images", "prefix", "strict"),
    *("return", "説明", ""),
    *("question", "answer", "input", "system", "history", "tools", "label", "messages", "value"),
    *("from", "id", "parameters"),
]  # fmt: skip


def hostile_rows(seed: int) -> tuple[str, list[dict[str, Any]]]:
    """The option that reads them, and some rows, of which most are damaged somewhere."""
    random = Random(seed)
    option = random.choice(OPTIONS)
    rows = [copy.deepcopy(SOUND[option]) for _ in range(5)]
    for row in rows[1:]:
        for _ in range(random.choice([0, 1, 1, 2, 3])):
            _damage(row, random)
    return option, rows


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _damage(row: dict[str, Any], random: Random) -> None:
    holder = random.choice(list(_holders(row)))
    places = list(range(len(holder))) if isinstance(holder, list) else list(holder)
    odd = copy.deepcopy(random.choice(ODD))
    what = random.choice(("replace", "replace", "add", "add", "remove", "again"))
    if what == "add" or not places:
        if isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), odd)
        else:
            holder[random.choice(KEYS)] = odd
        return
    place = random.choice(places)
    if what == "replace":
        holder[place] = odd
    elif what == "remove":
        del holder[place]
    elif isinstance(holder, list):
        holder.insert(random.randrange(len(holder) + 1), copy.deepcopy(holder[place]))
    else:
        holder[random.choice(KEYS)] = copy.deepcopy(holder[place])


def _holders(value: Any) -> Iterator[Any]:
    """All objects and lists in a row, itself among them."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)
