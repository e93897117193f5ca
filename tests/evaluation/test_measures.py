"""What is measured of answers, and how sure a difference is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ftkit.config.gate import MEASURES as GATED
from ftkit.evaluation.asking import Asked
from ftkit.evaluation.comparison import Comparison
from ftkit.evaluation.measures import MEASURES, Answer, by_question, differences, figures, pass_at


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


LOOPS = [
    "まず計算します。" * 4, "はい。" * 11, "は" * 40, ("あ" + "これは八十五文字の段落で、" * 7 + "終わり。\n\n") * 10,
    "前置きです。" + "".join(chr(0x3041 + i * i % 83) for i in range(900)) * 4 + "終わり",
]  # fmt: skip
NO_LOOPS = [
    "まず計算します。" * 3, "はい。" * 10, "-" * 40, "|---" * 12 + "|", "|:---:" * 12, "─" * 50, "_" * 50, "…" * 40,
    "\n" * 50,
    "　" * 50, "0." + "3" * 40, "1" + "0" * 40, "| 0 " * 12, "ー" * 40, "",
]  # fmt: skip


@pytest.mark.parametrize(("text", "loops"), [(text, True) for text in LOOPS] + [(text, False) for text in NO_LOOPS])
def test_a_loop_is_the_same_words_four_times_in_a_row(text: str, loops: bool) -> None:
    assert answer(thinking=text).loops is answer(output=text).loops is loops


@pytest.mark.parametrize(
    ("thinking", "japanese"),
    [
        ("6×7は42です。", True), ("まず足し算をします。", True), ("合計十三個", True), ("東京都千代田区霞が関", True),
        ("x + 3 = 5 なので、xの値は2になります。", True), ("我们先计算总数，然后减去三，得到十三。", False),
        ("我們先計算總數，然後減去三，得到十三。", False), ("我先算总数", False), ("這是十三", False),
        ("안녕하세요", False),
        ("Six times seven.", False), ("123", False), ("", False),
        ("我们先计算总数。の。我们先计算总数，然后减去三", False),
        ("まず足し算をします。" * 500 + "Then we go on in English. " * 500, False),
        ("Let us begin. " + "まず足し算をします。" * 500, True),
    ],
)  # fmt: skip
def test_thinking_is_japanese_by_all_of_its_text_and_chinese_is_not(thinking: str, japanese: bool) -> None:
    assert answer(thinking=thinking).thinks_in_japanese is japanese


def test_an_interval_holds_its_mean_and_narrows_with_more_answers():
    few = figures([answer(output, row=row) for row, output in enumerate(("42です。", "1") * 2)])["right"]
    many = figures([answer(output, row=row) for row, output in enumerate(("42です。", "1") * 200)])["right"]
    assert few.low <= few.mean == 0.5 <= few.high
    assert many.high - many.low < few.high - few.low


def test_a_change_in_every_answer_is_sure_and_no_change_is_not_sure_to_be_none():
    before, after = ([answer(thinking=t, row=row) for row in range(43)] for t in ("Six times seven.", "6×7は42です。"))
    change = differences(before, after)
    assert (change["thinks_in_japanese"].mean, change["thinks_in_japanese"].high) == (1, 1)
    assert 0.8 < change["thinks_in_japanese"].low < 0.95
    assert change["right"].mean == 0 and -0.08 < change["right"].low < -0.03 and 0.03 < change["right"].high < 0.08
    assert change["tokens"].ends == (0, 0)


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


def drawn(row: int, right: list[bool]) -> list[Answer]:
    return [replace(answer("42です。" if r else "43です。", row=row), sample=i) for i, r in enumerate(right)]


@pytest.mark.parametrize("right", list(itertools.product([False, True], repeat=5)))
def test_pass_at_k_is_the_share_of_k_drawn_answers_with_a_right_one(right: tuple[bool, ...]) -> None:
    for k in range(1, 6):
        draws = list(itertools.combinations(right, k))
        assert pass_at(drawn(7, list(right)), k) == {7: pytest.approx(sum(map(any, draws)) / len(draws))}


def test_a_comparison_has_pass_at_k_beside_the_other_figures() -> None:
    base = [*drawn(1, [True, False, False, False]), *drawn(2, [False] * 4)]
    tuned = [*drawn(1, [True, True, False, False]), *drawn(2, [True, False, False, False])]
    compared = Comparison(Asked(base, {}), Asked(tuned, {}), pass_at=(1, 2))
    result = compared.result()
    assert (result["base"]["pass@1"], result["merged"]["pass@1"]) == (0.125, 0.375)
    assert result["base"]["pass@2"] == pytest.approx((1 / 2 + 0) / 2)
    assert result["merged"]["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert result["difference"]["pass@2"] == pytest.approx(result["merged"]["pass@2"] - result["base"]["pass@2"])
    assert [row.label for row in compared.shown][-2:] == ["an answer is right", "one of 2 answers is right"]
