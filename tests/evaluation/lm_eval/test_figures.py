"""Figures of lm-eval side by side: how sure a change is, and how figures are shown."""

from __future__ import annotations

from typing import Any

import pytest

from ftkit.evaluation.lm_eval.figures import Estimate, shown, task_rows


def figure(each: list[float] | None, value: float, stderr: float | None = 0.01) -> dict[str, Any]:
    told = {"task": "gsm8k", "metric": "exact_match", "questions": 10, "higher_is_better": True}
    return {**told, "value": value, "stderr": stderr, "each": each}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0.0] * 3, [1.0] * 3, "unsure"),
        ([0.0] * 5 + [1.0] * 20, [1.0] * 25, "unsure"),
        ([0.0] * 6 + [1.0] * 20, [1.0] * 26, "better"),
        ([1.0] * 9, [0.0] * 9, "worse"),
        ([1.0] * 9, [1.0] * 9, "unsure"),
    ],
)
def test_a_change_is_sure_where_an_exact_test_says_so(before: list[float], after: list[float], verdict: str) -> None:
    """Three of three has no spread, and says little. Guard: ``by_chance`` in Estimate.excludes_zero."""
    means = [sum(each) / len(each) for each in (before, after)]
    (row,) = task_rows("gsm8k", {"base": [figure(before, means[0])], "merged": [figure(after, means[1])]})
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("estimate", "sign", "text"),
    [
        (Estimate(0.5126, 0.0138), "", "0.513 ± 0.014"),
        (Estimate(0.25, None), "+", "+0.250"),
        (Estimate(12345.678, None), "", "12345.678"),
        (Estimate(1.8431e42, 2.5e41), "", "1.84e+42 ± 2.5e+41"),
        (Estimate(-1.8431e42, None), "+", "-1.84e+42"),
    ],
)
def test_a_figure_has_as_many_digits_as_say_something(estimate: Estimate, sign: str, text: str) -> None:
    assert shown(estimate, sign) == text
