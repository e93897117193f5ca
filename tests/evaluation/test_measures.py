"""What is measured of answers, and how sure a difference is."""

from __future__ import annotations

import pytest

from ftkit.config.gate import MEASURES as GATED
from ftkit.evaluation.measures import MEASURES, Answer, by_question, differences, figures


def answer(
    output: str = "42です。",
    expected: str = "42です。",
    thinking: str = "6×7は42です。",
    row: int = 0,
    match: str = "exact",
) -> Answer:
    told = {"parses": True, "finished": True, "tokens": 20, "thinking_tokens": 8, "seconds": 0.1}
    return Answer(row, 0, "6×7は？", expected, match, thinking, output, **told)


def test_the_gate_knows_every_measure():
    assert tuple(MEASURES) == GATED


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
    few = figures([answer(output, row=row) for row, output in enumerate(("42です。", "1") * 2)])["right"]
    many = figures([answer(output, row=row) for row, output in enumerate(("42です。", "1") * 200)])["right"]
    assert few.low <= few.mean == 0.5 <= few.high
    assert many.high - many.low < few.high - few.low


def test_a_change_in_every_answer_is_sure_and_no_change_is_nothing():
    before, after = ([answer(thinking=t, row=row) for row in range(30)] for t in ("Six times seven.", "6×7は42です。"))
    change = differences(before, after)
    assert (change["thinks_in_japanese"].low, change["thinks_in_japanese"].high) == (1, 1)
    assert (change["right"].mean, change["right"].low, change["right"].high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("match", "output", "expected", "right"),
    [
        ("exact", "答えは11です", "11", False),
        ("last-number", "6たす5で、答えは１１個です", "11", True),
        ("last-number", "11引く1は10", "11", False),
        ("contains", "答えは ロンドン です。", "ロンドン", True),
        ("contains", "答えはパリです。", "ロンドン", False),
    ],
)
def test_matching_rules(match: str, output: str, expected: str, right: bool):
    assert answer(output, expected, match=match).right is right


def test_answers_to_one_question_count_as_one():
    answers = [answer(row=1)] * 9 + [answer("43", row=2)]
    assert by_question(answers, "right") == {1: 1, 2: 0}
    assert figures(answers)["right"].mean == 0.5


def test_the_library_tells_japanese_from_chinese_and_says_how_sure_it_is():
    for thinking, low, high in (("まず足し算をします。", 0.99, 1), ("首先我们计算总数。", 0, 0.1), ("", 0, 0.1)):
        assert low <= answer(thinking=thinking).japanese_probability <= high
