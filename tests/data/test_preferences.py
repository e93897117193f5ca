"""dataset=preference: pairs of answers as published data sets have them, and what is refused of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.prepared import Prepared, prepare_rows


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


THINKS = "<|channel|>analysis<|message|>足す。<|end|><|start|>assistant<|channel|>final<|message|>"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        (
            {"prompt": "12+30は？", "chosen": "<think>足す。</think>42です。",
             "rejected": "<think>足す。</think>41です。"},
            f"{THINKS}42です。<|return|>",
            f"{THINKS}41です。<|return|>",
        ),
        (
            {
                "prompt": [user("12+30は？")],
                "chosen": [assistant("42です。", reasoning_content="足す。")],
                "rejected": [assistant("41です。")],
            },
            f"{THINKS}42です。<|return|>",
            f"{FINAL}41です。<|return|>",
        ),
        (
            {
                "chosen": [user("12+30は？"), assistant("42です。")],
                "rejected": [user("12+30は？"), assistant("41です。")],
                "score_chosen": 8.0,
            },
            f"{FINAL}42です。<|return|>",
            f"{FINAL}41です。<|return|>",
        ),
        (
            {
                "prompt": "12+30は？",
                "chosen": [user("12+30は？"), assistant("42です。")],
                "rejected": [user("12+30は？"), assistant("[41]")],
            },
            f"{FINAL}42です。<|return|>",
            f"{FINAL}[41]<|return|>",
        ),
        (
            {"prompt": "12+30は？", "chosen": "[42]", "rejected": "{41}"},
            f"{FINAL}[42]<|return|>",
            f"{FINAL}{{41}}<|return|>",
        ),
    ],
    ids=["text", "explicit prompt", "two chats", "two chats and a prompt", "text in brackets"],
)  # fmt: skip
def test_every_layout_gives_one_prompt_and_two_answers(
    row: dict[str, Any], chosen: str, rejected: str, tmp_path: Path, tiny
) -> None:
    (found,) = prepare_rows([row], tmp_path, "preference").tokens
    prompt = tiny.decode(found["input_ids"][: found["prompt_length"]])
    assert prompt.endswith("<|start|>user<|message|>12+30は？<|end|><|start|>assistant")
    assert tiny.decode(found["input_ids"][found["prompt_length"] :]) == chosen
    assert tiny.decode(found["rejected_ids"]) == rejected
    assert [label for label in found["labels"] if label != -100] == found["input_ids"][found["prompt_length"] :]


def test_of_a_chat_the_last_answers_are_compared_and_earlier_ones_are_context(tmp_path: Path, tiny) -> None:
    before = [user("1+1は？"), assistant("2です。"), user("それに3を足すと？")]
    row = {"chosen": [*before, assistant("5です。")], "rejected": [*before, assistant("6です。")]}
    prepared = prepare_rows([row], tmp_path, "preference")
    (found,) = prepared.tokens
    assert "2です。<|end|>" in tiny.decode(found["input_ids"][: found["prompt_length"]])
    assert tiny.decode(found["rejected_ids"]) == f"{FINAL}6です。<|return|>"
    (written,) = prepared.conversations
    assert written["messages"][-1]["content"] == "5です。" and written["rejected"]["content"] == "6です。"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "1+2は？", "chosen": "3です。", "rejected": "3です。 \n"}, "chosen and rejected are equal"),
        ({"prompt": "1+2は？", "chosen": "3です。", "rejected": ""}, "rejected is empty"),
        ({"prompt": "1+2は？", "chosen": None, "rejected": "4です。"}, "chosen is null, not text"),
        ({"prompt": "1+2は？", "chosen": "3です。"}, "no column 'rejected'"),
        ({"chosen": "3です。", "rejected": "4です。"}, "chosen is an answer alone, and the row has no prompt"),
        (
            {"chosen": [user("1+2は？"), assistant("3です。")], "rejected": [user("1+3は？"), assistant("4です。")]},
            "chosen and rejected differ before their last answer",
        ),
        (
            {"prompt": "別の問い", "chosen": [user("1+2は？"), assistant("3です。")],
             "rejected": [user("1+2は？"), assistant("4です。")]},
            "the chat in chosen does not ask what the column prompt does",
        ),
        (
            {"chosen": [user("1+2は？"), assistant("3です。")], "rejected": [user("1+2は？")]},
            "the chat ends without an answer",
        ),
    ],
    ids=["equal", "empty", "null", "one answer", "no prompt", "other prompts", "another prompt", "no answer"],
)  # fmt: skip
def test_a_pair_that_teaches_nothing_is_refused_by_its_reason(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"prompt": "2+2は？", "chosen": "4です。", "rejected": "5です。"}
    prepared = prepare_rows([good, row], tmp_path, "preference")
    (refused,) = prepared.rejected
    assert (refused["row"], refused["reason"].partition(":")[0]) == (2, reason)
    assert refused["values"] == row
    assert prepared.summary.startswith("2 pairs: 1 to train on, 0 held out, 1 refused")


def test_pairs_without_thinking_are_refused_where_it_is_required(tmp_path: Path) -> None:
    both = {"prompt": "1+2は？", "chosen": "<think>足す。</think>3です。", "rejected": "<think>引く。</think>4です。"}
    lacks = {"prompt": "1+3は？", "chosen": "<think>足す。</think>4です。", "rejected": "5です。"}
    prepared = prepare_rows([both, lacks], tmp_path, "preference", "dataset.thinking=required")
    assert [row["row"] for row in prepared.rejected] == [2]


def test_lengths_are_those_of_the_longer_answer(tmp_path: Path) -> None:
    row = {"prompt": "1+2は？", "chosen": "3です。", "rejected": "4" * 60}
    prepared = prepare_rows([row], tmp_path, "preference")
    (found,) = prepared.tokens
    better, worse = len(found["input_ids"]), found["prompt_length"] + len(found["rejected_ids"])
    assert prepared.figures["longest"] == worse > better
    assert prepared.figures["tokens"] == better + worse and prepared.figures["pairs"]


def test_many_pairs_are_prepared_alike_by_several_processes(tmp_path: Path) -> None:
    """A chunk whose pairs are all refused has the columns of the others."""
    good = [{"prompt": f"{i}+1は？", "chosen": f"{i + 1}です。", "rejected": f"{i}です。"} for i in range(30)]
    bad = [{"prompt": "1+1は？", "chosen": "2", "rejected": "2"}] * 3000
    prepared: Prepared = prepare_rows([*good, *bad], tmp_path, "preference", "dataset.num_proc=1")
    assert len(prepared.tokens) == 30 and len(prepared.rejected) == 3000


def test_columns_of_pairs_beside_single_answers_are_named(tmp_path: Path) -> None:
    row = {"question": "1+2は？", "answer": "<think>足す。</think>3です。", "rejected": "4です。"}
    prepared = prepare_rows([row], tmp_path, "jsonl")
    assert any("method=dpo dataset=preference" in line for line in prepared.said)
