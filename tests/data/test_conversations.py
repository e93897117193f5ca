"""Rows become conversations or are refused with the reason; nothing else happens to them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.resolve import resolve
from ftkit.data.conversations import Converter
from ftkit.data.readers import RawRow
from ftkit.data.refused import Refused
from ftkit.data.thinking import split_thinking

DATASET = resolve(["experiment=tiny", "stage=prepare"]).dataset


def convert(**values):
    return Converter(DATASET).conversation(RawRow(7, "rows.jsonl:7", values))


def test_a_good_row_becomes_system_user_assistant():
    row = convert(question=" 2+2は？ ", answer="\n<think>\n2と2を足す。\n</think>\n\n4です。", question_type="算数")
    system, user, assistant = row.messages
    assert system["content"].startswith("reasoning language: Japanese\n\nYou are an AI chatbot")
    assert user == {"role": "user", "content": " 2+2は？ "}, "the endpoint gets the question as it is, too"
    assert assistant == {"role": "assistant", "thinking": "2と2を足す。", "content": "4です。"}
    assert (row.row, row.tags) == (7, {"question_type": "算数"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("4です。", "no <think> block"),
        ("<think>足す。4です。", "never closed"),
        ("<think>a</think>b<think>c</think>d", "tags are not one <think>…</think>"),
        ("<think>a<think>b</think></think>c", "tags are not one <think>…</think>"),
        ("</think>4です。", "block is empty"),
        ("</think>4です。<think>", "tags are not one <think>…</think>"),
        ("答え：<think>足す。</think>4です。", "text stands before <think>"),
        ("<think> </think>4です。", "block is empty"),
        ("<think>足す。</think> ", "no final answer"),
        ("<think>足す。</think>4です。<|return|>", "special token <|return|>"),
        (None, "answer is null"),
        (["<think>a</think>b"], "a message is no object: answer[0] is text".replace("[", r"\[")),
        (4, "answer is a number"),
        ("", "answer is empty"),
        ({"text": "a"}, "answer is an object"),
        (True, "answer is a truth value"),
        ("<think>\0</think>b", "NUL"),
        ("<think>\ud800</think>b", "surrogate"),
    ],
)
def test_a_bad_answer_is_refused_with_the_reason(answer, reason: str):
    with pytest.raises(Refused, match=reason.replace("|", r"\|")):
        convert(question="2+2は？", answer=answer)


@pytest.mark.parametrize("question", [None, "", "  ", ["a"], "<|start|>system"])
def test_a_bad_question_is_refused(question):
    with pytest.raises(Refused, match="question"):
        convert(question=question, answer="<think>a</think>b")


def test_a_missing_column_is_refused():
    with pytest.raises(Refused, match="no column 'answer'"):
        convert(question="2+2は？")


def test_tags_in_capitals_count():
    assert split_thinking("<THINK>a</Think>b") == ("a", "b")


def test_a_long_row_is_kept_whole():
    text = "長" * 350_000
    assert convert(question="q", answer=f"<think>{text}</think>b").messages[-1]["thinking"] == text


PLAIN = st.text(st.characters(exclude_characters="<\0\x1b", exclude_categories=["Cs"]))


@given(PLAIN, PLAIN)
def test_thinking_and_answer_come_back_as_they_were(thinking: str, content: str):
    whole = f"<think>{thinking}</think>{content}"
    if thinking.strip() and content.strip():
        parts = split_thinking(whole)
        assert [part.strip() for part in parts] == [thinking.strip(), content.strip()]
        for part, given_part in zip(parts, (thinking, content), strict=True):
            assert part in given_part and part == part.rstrip() and re.split("[\r\n]", part)[0].strip()
    else:
        with pytest.raises(Refused):
            convert(question="q", answer=whole)


def chat(settings, messages, **columns):
    return Converter(settings).conversation(RawRow(1, "rows.jsonl:1", {"messages": messages} | columns))


@pytest.fixture
def messages(dataset):
    return dataset("messages", "rows.jsonl")


USER = {"role": "user", "content": "2+2は？"}
ANSWER = {"role": "assistant", "content": "4です。", "thinking": "足す。"}


def test_a_chat_keeps_its_turns_and_its_system_message_comes_last_in_ours(messages):
    own = {"role": "developer", "content": "短く答える。"}
    inline = {"role": "assistant", "content": "<think>また足す。</think>8です。", "thinking": None}
    system, *turns = chat(messages, [own, USER, ANSWER, USER, inline]).messages
    assert system == {"role": "system", "content": "reasoning language: Japanese\n\n短く答える。"}
    assert turns == [USER, ANSWER, USER, {"role": "assistant", "thinking": "また足す。", "content": "8です。"}]


@pytest.mark.parametrize(
    ("given_messages", "reason"),
    [
        ([ANSWER, USER], "ends without an answer"),
        ([USER, USER, ANSWER], "wrong order: user speaks where it is the assistant's turn"),
        ([USER, ANSWER, ANSWER], "wrong order: assistant speaks where it is the user's turn"),
        ([USER, ANSWER, {"role": "system", "content": "s"}, USER, ANSWER], "wrong order: system speaks"),
        ([USER], "ends without an answer"),
        ([], "has no message"),
        ([{"role": "bot", "content": "4"}], "role is none that is known: messages[0].role is 'bot'"),
        ([{"content": "4"}], "a message has no role: messages[0] has content"),
        ([{"role": ["user"], "content": "4"}], "messages[0].role is ['user']"),
        (["2+2は？"], "no object: messages[0] is text"),
        ("2+2は？", "messages is text, not a list"),
        ("[2+2", "messages is text, but not the JSON of messages"),
        (None, "messages is null, not a list"),
        ([USER, {"role": "assistant", "content": "4です。"}], "no <think> block"),
        ([USER, ANSWER | {"content": "<think>a</think>b"}], "in a field of its own and in <think> too"),
        ([USER, ANSWER | {"thinking": ["足す。"]}], "thinking of messages is a list, not text: in messages[1]"),
        ([USER, ANSWER | {"thinking": " "}], "no <think> block"),
        ([USER, ANSWER | {"content": None}], "messages is null, not text: in messages[1]"),
        ([USER | {"content": "<|end|>"}, ANSWER], "messages holds the special token <|end|>"),
        ([USER, ANSWER | {"thinking": "<|end|>"}], "thinking of messages holds the special token"),
    ],
)
def test_a_bad_chat_is_refused_with_the_reason(messages, given_messages, reason: str):
    with pytest.raises(Refused) as caught:
        chat(messages, given_messages)
    assert reason in str(caught.value)


def test_sharegpt_s_names_are_mapped(dataset):
    row = [{"from": "human", "value": "2+2は？"}, {"from": "gpt", "value": "<think>足す。</think>4です。"}]
    settings = dataset("sharegpt", "rows.jsonl", "dataset.reasoning_language=null")
    assert Converter(settings).conversation(RawRow(1, "", {"conversations": row})).messages == [USER, ANSWER]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "2+2は？", "completion": "<think>足す。</think>4です。"},
        {"prompt": "2+2は？", "completion": "4です。", "reasoning": "足す。"},
        {"prompt": "2+2は？", "completion": "<think>足す。</think>4です。", "reasoning": None},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": "<think>足す。</think>4です。"},
    ],
    ids=["tags", "own_column", "own_column_empty", "messages", "mixed"],
)
def test_prompt_and_completion_may_be_text_or_messages(dataset, values):
    settings = dataset(
        "prompt-completion", "rows.jsonl", "dataset.columns.thinking=reasoning", "dataset.reasoning_language=null"
    )
    assert Converter(settings).conversation(RawRow(1, "", values)).messages == [USER, ANSWER]


def test_effort_language_and_persona_come_from_columns_where_a_row_has_them(dataset):
    named = [f"dataset.columns.{name}={name}" for name in ("reasoning_effort", "reasoning_language", "persona")]
    settings = dataset("jsonl", "rows.jsonl", *named)
    row = {"question": "q", "answer": "<think>a</think>b", "reasoning_effort": "high", "persona": "元気に。"}
    conversation = Converter(settings).conversation(RawRow(1, "", row | {"reasoning_language": None}))
    assert conversation.reasoning_effort == "high"
    assert conversation.messages[0]["content"] == "reasoning language: Japanese\n\n元気に。"
    assert conversation.tags == {"reasoning_effort": "high", "persona": "元気に。"}, "they stay beside the messages"
    with pytest.raises(Refused, match="effort is none of low, medium, high: 'extreme'"):
        Converter(settings).conversation(RawRow(1, "", row | {"reasoning_effort": "extreme"}))
    with pytest.raises(Refused, match="persona is a number"):
        Converter(settings).conversation(RawRow(1, "", row | {"persona": 3}))


def test_thinking_may_be_optional(dataset):
    settings = dataset("jsonl", "rows.jsonl", "dataset.thinking=optional")
    row = Converter(settings).conversation(RawRow(1, "", {"question": "q", "answer": "b"}))
    assert row.messages[-1] == {"role": "assistant", "content": "b"}
    with pytest.raises(Refused, match="never closed"):
        Converter(settings).conversation(RawRow(1, "", {"question": "q", "answer": "<think>b"}))


def test_special_tokens_are_kept_as_text_if_asked_to(dataset):
    settings = dataset("jsonl", "rows.jsonl", "dataset.special_tokens=neutralise")
    row = Converter(settings).conversation(RawRow(1, "", {"question": "<|end|>とは？", "answer": "<think>a</think>b"}))
    assert row.question == "<|end|>とは？" and row.holds_special_tokens
    assert (
        not Converter(settings)
        .conversation(RawRow(1, "", {"question": "q", "answer": "<think>a</think>b"}))
        .holds_special_tokens
    )


@pytest.mark.parametrize("column", [{"kind": "\ud800"}, {"\ud800": "kind"}])
def test_half_a_surrogate_pair_in_another_column_is_refused(column):
    with pytest.raises(Refused, match="half a surrogate pair"):
        convert(question="q", answer="<think>a</think>b", **column)
