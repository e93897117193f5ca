"""Rows as people keep them: each key with a meaning is used, or refused by its name."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from helpers.prepared import prepare_rows
from helpers.tool_chats import ANSWER, CALLED, RESULT, USER, call, openai

from ftkit.data.conversations import Converter
from ftkit.data.readers import RawRow
from ftkit.data.refused import LINE_ENDS, Account, Refused
from ftkit.data.turns import BLANK_LINES, NO_OPENING_TAG, TRIMMED


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([USER, CALLED, USER, ANSWER], "calls and results are not equally many"),
        ([USER, CALLED | {"tool_calls": [call(), call()]}, RESULT, ANSWER], "not equally many: 2 calls, 1 results"),
        ([USER, RESULT, ANSWER], "a tool's result stands where no call was made"),
        ([USER, CALLED, RESULT], "ends without an answer"),
        ([USER, CALLED, RESULT | {"name": "other"}, ANSWER], "of another function than its call: other"),
        ([USER, openai(), {"role": "tool", "tool_call_id": "c2", "content": "x"}, ANSWER], "no result with its id"),
        ([USER, CALLED, RESULT | {"name": {"": None}}, ANSWER], "is no text: messages[2].name is an object"),
        ([USER, CALLED, RESULT | {"name": 7}, ANSWER], "is no text: messages[2].name is a number"),
        ([USER, openai("{city")], "not JSON: arguments of messages[1]"),
        ([USER, CALLED | {"tool_calls": [call(name="get weather")]}], "name is not made of letters"),
        ([USER, CALLED | {"tool_calls": [call('{"a": "<|call|>"}')]}], "holds the special token <|call|>"),
        ([USER, {"role": "assistant", "content": "<tool_call>{}"}], "<tool_call> is not closed"),
        ([USER | {"tool_calls": [call()]}, ANSWER], "a message of user has tool calls"),
        ([USER, ANSWER | {"channel": "secret"}], "channel is none of analysis, commentary, final"),
        ([USER, ANSWER | {"recipient": "browser.search"}], "recipient is no function"),
        ([USER, ANSWER | {"thinking": None, "content": "答え", "channel": "commentary"}], "no call follows"),
        ([USER, {"role": "assistant", "channel": "analysis", "content": "考えだけ"}], "ends without an answer"),
        ([USER, ANSWER | {"refusal": "できません"}], "a message's refusal cannot be trained"),
        ([USER | {"images": ["cat.png"]}, ANSWER], "a message's images cannot be trained"),
        ([USER, ANSWER | {"prefix": True}], "a message's prefix cannot be trained"),
        ([USER, ANSWER | {"reasoning": "別の考え"}], "thinking and reasoning of a message differ"),
        ([USER, ANSWER | {"weight": 0.5}], "weight is neither 0 nor 1"),
        ([USER, ANSWER | {"weight": 1, "train": False}], "weight and train of a message contradict"),
        ([USER, ANSWER | {"weight": 0}], "no answer of the row is to be trained"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "a part of the type image_url"),
        ([USER, ANSWER | {"thinking": None, "content": "<reasoning>a</reasoning>b"}], "thinks in <reasoning>"),
        ([USER, ANSWER | {"mask": 1}], "a message's mask may take it out of training"),
        ([USER | {"deleted": True}, ANSWER], "a message's deleted may take it out of training"),
        ([USER, {"from": "gpt", "value": "a"}], "a message has no role: messages[1] has from, value"),
        ([USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}], "a part of the type tool_use"),
        ([USER, ANSWER | {"content": '[TOOL_CALLS][{"name": "f"}]'}], "a tool call in the form of another model"),
        ([USER, CALLED | {"tool_calls": [call("[1]")]}], "arguments of a tool call are no object: in messages[1]"),
        ([USER, CALLED | {"tool_calls": [call('{"a": 1, "a": 2}')]}], "a key occurs twice in a tool call"),
        ([{"role": "system", "content": "Reasoning: high\nReasoning: low"}, USER, ANSWER], "two reasoning efforts"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}, "input": {"a": 2}}]}],
         "arguments and input of a tool differ: in messages[1]"),
        ([USER, CALLED | {"function_call": {"name": "other"}}], "tool_calls and function_call of a message differ"),
        ([USER, CALLED | {"content": "<tool_call>{}</tool_call>"}], "one in its text or by its recipient too"),
        ([USER, CALLED | {"recipient": "functions.f"}], "one in its text or by its recipient too"),
        ([USER, CALLED | {"tool_calls": [call({"when": date(2026, 1, 1)})]}], "what JSON has not: in messages[1]"),
        ([USER, CALLED, RESULT | {"content": {"bytes": b"a"}}, ANSWER], "what JSON has not: in messages[2]"),
        ([USER, CALLED, RESULT | {"content": {"a": float("nan")}}, ANSWER], "what JSON has not: in messages[2]"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_as_it_is_meant_is_refused_by_its_name(convert, chat, reason: str):
    with pytest.raises(Refused) as caught:
        convert("messages", {"messages": chat})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "weight", [{"weight": 0}, {"train": False}, {"training": False, "loss": False}, {"loss": 0}, {"trainable": False}]
)
def test_a_turn_of_weight_0_is_context(convert, weight: dict):
    bad = {"role": "assistant", "content": "8です。"}
    chat = convert("messages", {"messages": [USER, bad | weight, USER, ANSWER | {"weight": 1}]}).messages
    assert chat == [USER, bad | {"train": False}, USER, ANSWER]


@pytest.mark.parametrize("key", ["thinking", "reasoning_content", "reasoning", "thoughts"])
def test_thinking_under_its_usual_keys_is_thinking(convert, key: str):
    row = {"messages": [USER, {"role": "assistant", "content": "晴れです。", key: "晴れ。"}]}
    own = ("dataset.turns.thinking=thoughts",) if key == "thoughts" else ()
    assert convert("messages", row, "dataset.thinking=optional", *own).messages == [USER, ANSWER]


def test_keys_that_are_not_used_are_counted(convert):
    account = Account()
    chat = [USER | {"id": 7, "name": "太郎"}, ANSWER | {"id": 8, "time": None}]
    convert("messages", {"messages": chat, "source": "web", "empty": ""}, account=account)
    assert account.unused_keys == {"id": 2, "name": 1} and account.unused == {"source": 1}
    with pytest.raises(Refused, match="who is a number, not text"):
        convert("messages", {"messages": chat, "who": 0}, "dataset.columns.persona=who")


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([{"role": "User", "content": "q"}, {"role": "ASSISTANT ", "content": "a", "thinking": "t"}], None),
        ([{"role": "user", "content": [{"type": "text", "text": "q"}]},
          {"role": "assistant",
           "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]}], None),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "q"},
          {"role": "assistant", "content": "a", "thinking": "t"}], None),
        ({"role": ["user", "assistant"], "content": ["q", "a"], "thinking": [None, "t"]}, None),
        ([{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, {"role": "user", "content": "q"},
          {"role": "assistant", "content": "a", "thinking": "t"}], [{"role": "system", "content": "s\n\nd"}]),
        ([{"role": "assistant", "content": "ようこそ"}, {"role": "user", "content": "q"},
          {"role": "assistant", "content": "a", "thinking": "t"}],
         [{"role": "assistant", "content": "ようこそ", "train": False}]),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "考える。\n</think>\n\na"}], "考える。"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "channel": "analysis", "content": "t"},
          {"role": "assistant", "channel": "final", "content": "a"}], None),
    ],
    ids=["case", "parts", "empty_system", "columns", "system_and_developer", "greeting", "r1", "channels"],
)  # fmt: skip
def test_other_shapes_of_a_chat(convert, chat, expected):
    opening = expected if isinstance(expected, list) else []
    answer = {"role": "assistant", "content": "a", "thinking": expected if isinstance(expected, str) else "t"}
    found = convert("messages", {"messages": chat}).messages
    assert found == [*opening, {"role": "user", "content": "q"}, answer]


def test_two_messages_of_one_role_are_joined_if_asked_for(convert):
    chat = {"messages": [USER, {"role": "user", "content": "大阪は？"}, ANSWER]}
    with pytest.raises(Refused, match="wrong order") as caught:
        convert("messages", chat)
    assert caught.value.cure.startswith("dataset.turns.consecutive=join")
    joined = convert("messages", chat, "dataset.turns.consecutive=join").messages
    assert joined == [{"role": "user", "content": "東京の天気は？\n\n大阪は？"}, ANSWER]


@pytest.mark.parametrize(
    ("answer", "thinking", "content"),
    [
        ("<think>\n\n</think>\n\n東京です。", None, "東京です。"),
        ("<think>二倍。</think>    return x * 2\n\n", "二倍。", "    return x * 2"),
        ("<think>\n　字下げ。\n</think>\n　朝、\n　空は", "　字下げ。", "　朝、\n　空は"),
        ("<think> a </think> b ", "a", "b"),
        ("　　二字下げです。", None, "　　二字下げです。"),
        ("\n\n  a\n", None, "  a"),
    ],
)
def test_indentation_stays_and_layout_around_the_tags_goes(convert, answer: str, thinking: str | None, content: str):
    row = {"question": " q\n", "answer": answer}
    *_, question, found = convert("jsonl", row, "dataset.thinking=optional").messages
    assert question["content"] == " q\n"
    assert (found.get("thinking"), found["content"]) == (thinking, content)


def test_what_is_changed_or_guessed_is_said(convert):
    account = Account()
    convert("jsonl", {"question": "q", "answer": "a\n"}, "dataset.thinking=optional", account=account)
    convert("jsonl", {"question": "q", "answer": "t</think>a"}, account=account)
    convert("jsonl", {"question": "q\r\nr\x1f", "answer": "<think>t</think>a"}, account=account)
    assert account.remarks == {
        TRIMMED: 1,
        NO_OPENING_TAG: 1,
        LINE_ENDS: 1,
        "control characters stand in the text": 1,
    }
    with pytest.raises(Refused, match="ISO-2022-JP"):
        convert("jsonl", {"question": "\x1b$BF|\x1b(B", "answer": "<think>t</think>a"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"answer": "<think>\nt\n</think>\n\na"}, set()),
        ({"answer": "<think>t</think>    a\n\n"}, {TRIMMED}),
        ({"answer": "\n\n  a"}, {BLANK_LINES}),
        ({"answer": "a", "reasoning": "t\n"}, {TRIMMED}),
        ({"answer": "a", "reasoning": "\nt"}, {BLANK_LINES}),
        ({"answer": "　a", "reasoning": "　t"}, set()),
    ],
)
def test_white_space_that_is_left_out_is_said_but_for_the_line_breaks_around_the_tags(convert, values, said):
    account = Account()
    settings = ("dataset.thinking=optional", "dataset.columns.thinking=reasoning?")
    convert("jsonl", {"question": "q"} | values, *settings, account=account)
    assert account.remarks.keys() == said


def test_line_ends_are_the_same_whatever_the_kind_of_file(tmp_path: Path, convert):
    row = {"question": "一\r\n二\r三", "answer": "<think>　字下げ\r\n    x</think>\r\n答え"}
    table = tmp_path / "rows.csv"
    table.write_bytes(("question,answer\r\n" + ",".join(f'"{text}"' for text in row.values()) + "\r\n").encode())
    said = Account()
    read = prepare_rows(table, tmp_path, "jsonl", "dataset.reasoning_language=null")
    expected = [
        {"role": "user", "content": "一\n二\n三"},
        {"role": "assistant", "thinking": "　字下げ\n    x", "content": "答え"},
    ]
    assert convert("jsonl", row, account=said).messages == read.conversations[0]["messages"] == expected
    assert list(said.remarks) == [LINE_ENDS] and read.said == [f"1 row: {LINE_ENDS}"]


@pytest.mark.parametrize(
    "text", ["では、<reasoning>t</reasoning>a", "＜think＞t＜/think＞a", "&lt;think&gt;t", "[think]t", "<think >t"]
)
def test_what_reads_like_tags_of_thinking_is_said_where_it_is_trained(convert, text: str):
    account = Account()
    convert("jsonl", {"question": "q", "answer": text}, "dataset.thinking=optional", account=account)
    assert len(account.remarks) == 1 and "which is trained as text" in next(iter(account.remarks))
    clean = Account()
    convert("jsonl", {"question": "q", "answer": "a < b と c > d"}, "dataset.thinking=optional", account=clean)
    assert not clean.remarks


@pytest.mark.parametrize(
    ("said", "column", "effort", "system"),
    [
        ("Reasoning: high", None, "high", None),
        ("秘書です。\n\nreasoning: LOW\n", None, "low", "秘書です。"),
        ("Reasoning: high", "High", "high", None),
        ("秘書です。", "High ", "high", "秘書です。"),
        ("秘書です。", None, "medium", "秘書です。"),
    ],
)
def test_gpt_oss_s_line_for_the_effort_is_the_row_s_effort(convert, said, column, effort, system):
    row = {"messages": [{"role": "system", "content": said}, USER, ANSWER], "effort": column}
    found = convert("messages", row, "dataset.columns.reasoning_effort=effort")
    assert found.reasoning_effort == effort
    assert found.messages == [*([{"role": "system", "content": system}] if system else []), USER, ANSWER]
    with pytest.raises(Refused, match="two reasoning efforts: low and high"):
        asked = [{"role": "system", "content": "Reasoning: high"}, USER, ANSWER]
        convert("messages", {"messages": asked, "effort": "low"}, "dataset.columns.reasoning_effort=effort")


@pytest.mark.parametrize("nothing", ["", "　\n", None, float("nan"), "<noinput>"])
def test_an_input_that_holds_nothing_adds_nothing(convert, nothing):
    row = {"instruction": "訳して。", "input": nothing, "output": "<think>t</think>a"}
    assert convert("alpaca", row).messages[0]["content"] == "訳して。"


def test_another_tag_holds_the_thinking_if_asked_for(convert):
    row = {"question": "q", "answer": "<reasoning>t</reasoning>a"}
    found = convert("jsonl", row, "dataset.thinking_tag=reasoning").messages
    assert found == [{"role": "user", "content": "q"}, {"role": "assistant", "thinking": "t", "content": "a"}]
    with pytest.raises(Refused) as caught:
        convert("jsonl", row, "dataset.thinking=optional")
    assert caught.value.cure == "dataset.thinking_tag=reasoning"


def test_alpaca_s_input_system_and_history_are_in_the_prompt(convert):
    row: dict[str, Any] = {
        "instruction": "要約して。",
        "input": "本文。",
        "output": "<think>t</think>a",
        "system": "先生です。",
    }
    row["history"] = [["前の問い", "前の答え"]]
    assert convert("alpaca", row).messages == [
        {"role": "system", "content": "先生です。"},
        {"role": "user", "content": "前の問い"},
        {"role": "assistant", "content": "前の答え", "train": False},
        {"role": "user", "content": "要約して。\n\n本文。"},
        {"role": "assistant", "thinking": "t", "content": "a"},
    ]


def test_history_in_a_prompt_is_context_and_needs_no_thinking(convert):
    prompt = [USER, {"role": "assistant", "content": "弱い答え"}, USER]
    found = convert("prompt-completion", {"prompt": prompt, "completion": [ANSWER]}).messages
    assert found == [USER, {"role": "assistant", "content": "弱い答え", "train": False}, USER, ANSWER]


def test_a_thinking_column_goes_to_a_completion_of_one_message(convert):
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": "晴れです。"}], "reasoning": "晴れ。"}
    named = "dataset.columns.thinking=reasoning"
    assert convert("prompt-completion", row, named).messages == [USER, ANSWER]
    with pytest.raises(Refused, match="the column reasoning has thinking, and so have messages"):
        convert("prompt-completion", row | {"completion": [ANSWER]}, named)
    with pytest.raises(Refused, match="reasoning is a list, not text"):
        convert("prompt-completion", row | {"reasoning": ["晴れ。"]}, named)


def test_loss_last_trains_what_follows_the_last_user_message(convert):
    chat = {"messages": [USER, ANSWER, USER, CALLED, RESULT, ANSWER]}
    found = convert("messages", chat, "dataset.loss=last").messages
    assert [m.get("train", True) for m in found if m["role"] == "assistant"] == [False, True, True]
    assert all("train" not in message for message in convert("messages", chat).messages)


def test_the_row_s_own_reasoning_language_wins_and_is_said(dataset):
    settings = dataset("messages", "rows.jsonl")
    account = Account()
    row = {"messages": [{"role": "system", "content": "reasoning language: French\n\nYou are a poet."}, USER, ANSWER]}
    found = Converter(settings, account).conversation(RawRow(1, "", row)).messages
    assert found[0]["content"] == "reasoning language: French\n\nYou are a poet."
    assert "stands in place of dataset.reasoning_language=Japanese" in next(iter(account.remarks))
    named = dataset("messages", "rows.jsonl", "dataset.columns.reasoning_language=lang")
    same = Converter(named).conversation(RawRow(1, "", row | {"lang": "French"})).messages
    assert same[0]["content"].count("reasoning language") == 1
    with pytest.raises(Refused, match="two reasoning languages: French and German"):
        Converter(named).conversation(RawRow(1, "", row | {"lang": "German"}))
