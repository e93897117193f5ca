"""Rows become conversations or are refused with the reason; nothing else happens to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.resolve import resolve
from ftkit.data.conversations import Refused, split_of, split_thinking, to_conversation
from ftkit.data.readers import RawRow

DATASET = resolve(["experiment=tiny", "stage=prepare"]).dataset


def convert(**values):
    return to_conversation(RawRow(7, values), DATASET)


def test_a_good_row_becomes_system_user_assistant():
    row = convert(question=" 2+2は？ ", answer="\n<think>\n2と2を足す。\n</think>\n\n4です。", question_type="算数")
    system, user, assistant = row.messages
    assert system["content"].startswith("reasoning language: Japanese\n\nYou are an AI chatbot")
    assert user == {"role": "user", "content": "2+2は？"}
    assert assistant == {"role": "assistant", "thinking": "2と2を足す。", "content": "4です。"}
    assert (row.row, row.tags) == (7, {"question_type": "算数"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("4です。", "no <think> block"),
        ("<think>足す。4です。", "never closed"),
        ("<think>a</think>b<think>c</think>d", "where one <think>…</think> belongs"),
        ("<think>a<think>b</think></think>c", "where one <think>…</think> belongs"),
        ("</think>4です。", "where one <think>…</think> belongs"),
        ("答え：<think>足す。</think>4です。", "text stands before <think>"),
        ("<think> </think>4です。", "block is empty"),
        ("<think>足す。</think> ", "no final answer"),
        ("<think>足す。</think>4です。<|return|>", "special token <|return|>"),
        (None, "answer is null"),
        (["<think>a</think>b"], "answer is a list"),
        (4, "answer is a number"),
        ("", "answer is empty"),
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


@given(st.text(st.characters(exclude_characters="<")), st.text(st.characters(exclude_characters="<")))
def test_thinking_and_answer_come_back_as_they_were(thinking: str, content: str):
    whole = f"<think>{thinking}</think>{content}"
    if thinking.strip() and content.strip():
        assert split_thinking(whole) == (thinking.strip(), content.strip())
    else:
        with pytest.raises(Refused):
            split_thinking(whole)


@given(st.text())
def test_the_split_is_stable_and_blind_to_width_and_outer_space(question: str):
    assert split_of(question, 0.3) == split_of(f" {question}\n", 0.3)
    assert split_of(question, 0.0) == "train"


def test_the_held_out_share_is_about_what_was_asked_for():
    share = sum(split_of(f"質問{i}", 0.2) == "heldout" for i in range(5000)) / 5000
    assert 0.18 < share < 0.22
