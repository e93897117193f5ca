"""What ``prepare`` prints and counts beside the rows themselves: columns, keys, changes, and an uneven split."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.prepared import prepare_rows

from ftkit.errors import StageError

ROW = {"question": "2+2は？", "answer": "<think>2に2を足す。</think>4です。"}
TYPO = {
    "question": "1+1は？",
    "answer": "2です。",
    "reasoning": "1に1を足す。",
    "effort": "high",
    "lang": "English",
    "who": "海賊",
}
SIDES = ("train", "heldout")
TOOL = {"name": "weather", "description": "天気", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}


def chat(*texts: str) -> dict:
    turns = [("user", "assistant")[i % 2] for i in range(len(texts))]
    return {
        "messages": [
            {"role": role, "content": text} | ({"thinking": f"{text}を考える。"} if role == "assistant" else {})
            for role, text in zip(turns, texts, strict=True)
        ]
    }


@pytest.mark.parametrize(
    ("setting", "given", "nearest"),
    [
        ("columns.thinking", "reasonning", "reasoning"),
        ("columns.reasoning_effort", "efort", "effort"),
        ("columns.reasoning_language", "langu", "lang"),
        ("columns.persona", "whom", "who"),
        ("columns.input", "anser", "answer"),
    ],
)
def test_a_column_that_no_row_has_is_an_error_with_the_nearest(tmp_path: Path, setting: str, given: str, nearest: str):
    with pytest.raises(StageError, match=f"no row has the column '{given}'; there are answer, effort") as caught:
        prepare_rows([TYPO], tmp_path, "jsonl", f"dataset.{setting}={given}")
    assert caught.value.cure == f"dataset.{setting}={nearest}"
    with pytest.raises(StageError, match="none of the 1 rows can be used"):
        prepare_rows([TYPO], tmp_path, "jsonl", f"dataset.{setting}={given}?")


def test_a_key_of_messages_that_none_has_is_an_error_with_the_nearest(tmp_path: Path):
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "reasoning_content": "t", "content": "a"}]
    }
    with pytest.raises(StageError) as caught:
        prepare_rows([row], tmp_path, "messages", "dataset.turns.thinking=reasoning_contents")
    assert caught.value.cure == "dataset.turns.thinking=reasoning_content"


def test_columns_that_are_not_used_are_listed_with_the_key_that_uses_them(tmp_path: Path):
    rows = [
        ROW | {"input": "本文", "score": 1, "source": "web"},
        ROW | {"input": "", "score": 2, "correct": 1},
        ROW | {"input": "別"},
    ]
    made = prepare_rows(rows, tmp_path, "jsonl")
    assert made.said == [
        "not used: input (2 of 3 rows not empty); dataset.columns.input=input puts it to use",
        "not used: score (2 of 3 rows not empty); every answer is trained as it stands",
        "not used: correct (1 of 3 rows not empty); dataset.columns.label=correct refuses the rows where it is false",
        "not used: source (1 of 3 rows not empty)",
    ]
    assert made.figures["not_used"] == {"input": 2, "score": 2, "source": 1, "correct": 1}
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    assert all(line.split(";")[0] in page for line in made.said)


@pytest.mark.parametrize(
    ("mark", "overrides", "refused", "unused"),
    [
        ({"label": False}, (), 1, 0),
        ({"label": "False"}, (), 1, 0),
        ({"label": True}, (), 0, 0),
        ({"label": 0}, (), 0, 1),  # a class, for all that is known
        ({"label": "肯定的"}, (), 0, 1),
        ({"label": 0}, ("dataset.columns.label=label",), 1, 0),
        ({"label": "肯定的"}, ("dataset.columns.label=label",), 1, 0),
        ({"correct": "0"}, ("dataset.columns.label=correct",), 1, 0),
        ({"label": False}, ("dataset.columns.label=null",), 0, 1),
    ],
)
def test_an_answer_that_is_marked_as_bad_is_not_trained_as_good(tmp_path: Path, mark, overrides, refused, unused):
    made = prepare_rows([ROW | mark, ROW | dict.fromkeys(mark, True)], tmp_path, "jsonl", *overrides)
    assert made.figures["rejected"] == refused and made.figures["train"] == 2 - refused
    assert sum(made.figures["not_used"].values()) == (unused and 2 if "null" in str(overrides) else unused)
    if refused and "肯定的" not in mark.values():
        assert "is false, which marks the answer as a bad one (dataset.columns.label=null" in made.said[0]


@pytest.mark.parametrize("names", [("label", "note"), ("note", "label")])
def test_columns_of_a_row_that_its_label_refuses_are_counted_wherever_they_stand(tmp_path: Path, names):
    bad = ROW | {name: {"label": False, "note": "誤り"}[name] for name in names}
    assert prepare_rows([ROW, bad], tmp_path, "jsonl").figures["not_used"] == {"note": 1}


def test_refused_rows_are_told_with_a_cure_and_where_they_are(tmp_path: Path):
    made = prepare_rows([ROW, {"question": "q", "answer": "a"}], tmp_path, "jsonl")
    assert "refused 1: the answer has no <think> block (dataset.thinking=optional" in made.said[0]
    assert made.said[1] == f"each refused row is in {made.folder / 'rejected.jsonl'}" and len(made.rejected) == 1
    with pytest.raises(StageError) as caught:
        prepare_rows(
            [{"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}]}], tmp_path, "messages"
        )
    assert caught.value.cure == "dataset.turns.consecutive=join writes them as one"


def test_lists_that_are_cut_say_how_many_more_there_are_and_the_record_has_all(tmp_path: Path):
    bad = ["a", "<think>a", "<think></think>a", "<think>a</think>", "x<think>a</think>b"]
    made = prepare_rows([ROW, *(ROW | {"answer": text} for text in bad)], tmp_path, "jsonl")
    assert made.said[3] == f"each refused row is in {made.folder / 'rejected.jsonl'}; 2 more reasons there"
    keys = {f"key{i}": i + 1 for i in range(11)}
    messages = [message | keys for message in chat("2+2は？", "4です。")["messages"]]
    made = prepare_rows([{"messages": messages}], tmp_path, "messages")
    assert made.said[0].endswith("key7 (2), and 3 more") and made.figures["not_used_keys"] == dict.fromkeys(keys, 2)


def test_a_tokenizer_that_is_not_the_models_is_told_before_anything_is_trained(tmp_path: Path, real_folder: Path):
    """Guard: _check_vocabulary; a folder with a tokenizer alone is taken at the word of model.architecture."""
    with pytest.raises(StageError, match="row 1 holds token 200008, and the model has 2048") as caught:
        prepare_rows([ROW], tmp_path, "jsonl", f"model.tokenizer={real_folder}")
    assert caught.value.where == str(real_folder) and caught.value.cure.startswith("model.tokenizer=")
    alone = f"model.pretrained_model_name_or_path={real_folder}"
    assert prepare_rows([ROW], tmp_path, "jsonl", alone).figures["train"] == 1


def test_tokens_are_counted_of_the_training_rows_and_called_so(tmp_path: Path):
    rows = [ROW | {"question": f"{i}と{i + 1}を足すといくつですか？"} for i in range(20)]
    made = prepare_rows(rows, tmp_path, "jsonl", "dataset.heldout=0.3", "dataset.near_duplicates=1")
    lengths = {side: sum(len(row["input_ids"]) for row in made.tokens if row["split"] == side) for side in SIDES}
    assert lengths["heldout"] and f"; {lengths['train']:,} tokens to train on," in made.summary


def test_templated_prompts_name_the_key_that_parts_them(tmp_path: Path):
    said = "次のレビューが肯定的か否定的かを一語で答えてください。理由は要りません。"
    said += "必ずどちらかで答えてください。レビュー: "
    rows = [ROW | {"question": f"{said}{i}番"} for i in range(20)]
    made = prepare_rows(rows, tmp_path, "jsonl", "dataset.heldout=0.9")
    assert made.summary.startswith("20 rows: 20 to train on, 0 held out")
    assert (
        "100% of the rows have to be on the same side of the split" in made.said[0]
        and "dataset.near_duplicates=1" in made.said[0]
    )
    assert made.said[1] == "no row is held out of 20 (dataset.heldout=0.9)"
    apart = prepare_rows(rows, tmp_path, "jsonl", "dataset.heldout=0.5", "dataset.near_duplicates=1")
    assert 0 < apart.figures["heldout"] < 20 and apart.said == []


def test_a_share_that_would_hold_out_nothing_holds_out_one_and_says_so(tmp_path: Path):
    rows = [ROW | {"question": f"{i}の{i}乗はいくつですか？" * 3} for i in range(20)]
    made = prepare_rows(rows, tmp_path, "jsonl", "dataset.heldout=0.000001", "dataset.near_duplicates=1")
    assert made.figures["heldout"] == 1
    assert made.said == [
        "the share dataset.heldout=1e-06 of 20 rows would leave a side empty: 1 held out, 19 to train on"
    ]


def test_chats_stored_after_each_turn_stay_on_one_side_and_no_token_row_is_on_both(tmp_path: Path):
    turns = [[f"{i}と{t}を足すと、いくつになりますか？", f"{i + t}です。"] for i in range(40) for t in (1, 2, 3)]
    chats = [[text for turn in turns[3 * i : 3 * i + stage] for text in turn] for i in range(40) for stage in (1, 2, 3)]
    made = prepare_rows(
        [chat(*texts) for texts in chats], tmp_path, "messages", "dataset.heldout=0.3", "dataset.near_duplicates=1"
    )
    sides = {row["row"]: row["split"] for row in made.conversations}
    assert all(len({sides[3 * i + 1 + stage] for stage in range(3)}) == 1 for i in range(40))
    ids = {side: {tuple(row["input_ids"]) for row in made.tokens if row["split"] == side} for side in SIDES}
    assert ids["heldout"] and not ids["heldout"] & ids["train"] and made.figures["equal_across_split"] == 0


def test_a_long_chat_is_remarked_on(tmp_path: Path):
    texts = [text for i in range(40) for text in (f"{i}番の問い", f"{i}番の答え")]
    made = prepare_rows([chat(*texts)], tmp_path, "messages")
    assert "dataset.loss=last trains what follows the last user message alone" in made.said[-1]
    last = prepare_rows([chat(*texts)], tmp_path, "messages", "dataset.loss=last")
    assert len(last.tokens) == 1 and last.tokens[0]["input_ids"] == made.tokens[-1]["input_ids"]


def test_tools_and_turns_without_loss_are_in_the_published_rows_and_can_be_read_again(tmp_path: Path, tiny):
    called = {"role": "assistant", "content": "", "thinking": "調べる。", "tool_calls": [CALL]}
    messages = [
        {"role": "user", "content": "天気は？"},
        called,
        {"role": "tool", "name": "weather", "content": "晴れ"},
        {"role": "assistant", "content": "雨です。", "weight": 0},
        {"role": "user", "content": "もう一度。"},
        {"role": "assistant", "content": "晴れです。", "thinking": "晴れ。"},
    ]
    made = prepare_rows([{"messages": messages, "tools": [TOOL]}, chat("q", "a")], tmp_path, "messages")
    table = pq.read_table(made.folder / "reasoning_harmony.parquet").to_pylist()
    assert json.loads(table[0]["tools"]) == made.conversations[0]["tools"] == [TOOL] and table[1]["tools"] is None
    assert table[0]["messages"][2]["tool_calls"] == [CALL] and table[0]["messages"][4]["train"] is False
    for name in ("reasoning_harmony.parquet", "reasoning_harmony.jsonl"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        again = prepare_rows(made.folder / name, folder, "messages")
        assert again.texts(tiny) == made.texts(tiny)
