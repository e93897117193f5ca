"""What is measured of answers, and how sure a difference is."""

from __future__ import annotations

import pytest

from ftkit.config.gate import MEASURES as GATED
from ftkit.evaluation.measures import MEASURES, Answer, differences, figures


def answer(
    output: str = "42です。", expected: str = "42です。", thinking: str = "6×7は42です。", row: int = 0
) -> Answer:
    return Answer(row, "6×7は？", expected, thinking, output, parses=True, finished=True, tokens=20)


def test_the_gate_knows_every_measure():
    assert GATED == MEASURES


@pytest.mark.parametrize(
    ("output", "expected", "right", "right_number"),
    [
        ("42です。", "42です。", True, True),
        ("答えは４２です", "42です。", False, True),
        ("1,200円", "1200円", False, True),
        ("-3.5度", "-3.5", False, True),
        ("43です。", "42です。", False, False),
        ("東京です。", "東京です。", True, True),
        ("京都です。", "東京です。", False, False),
        ("", "42です。", False, False),
    ],
)
def test_right_word_for_word_and_by_number(output: str, expected: str, right: bool, right_number: bool):
    asked = answer(output, expected)
    assert (asked.right, asked.right_number) == (right, right_number)


def test_a_loop_is_the_same_words_four_times_in_a_row():
    assert answer(thinking="まず計算します。" * 4).loops
    assert not answer(thinking="まず計算します。" * 3).loops


def test_an_interval_holds_its_mean_and_narrows_with_more_answers():
    few = figures([answer(), answer("1"), answer(), answer("2")])["right"]
    many = figures([answer(), answer("1")] * 200)["right"]
    assert few.low <= few.mean == 0.5 <= few.high
    assert many.high - many.low < few.high - few.low


def test_a_change_in_every_answer_is_sure_and_no_change_is_nothing():
    before, after = [answer(thinking="Six times seven.")] * 30, [answer()] * 30
    change = differences(before, after)
    assert (change["thinks_in_japanese"].low, change["thinks_in_japanese"].high) == (1, 1)
    assert (change["right"].mean, change["right"].low, change["right"].high) == (0, 0, 0)
