"""What is said to cover the truth 95 times of 100 does, near 0 and 1 as well: simulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from ftkit.evaluation.intervals import Figure, change_of_shares, mean_of_counts, mean_of_shares, probability_of_signs

SAMPLES = 1500


def coverage(truth: float, draw: Callable[[np.random.Generator], tuple], interval: Callable[..., Figure]) -> float:
    """Share of the intervals that hold the truth; equal draws are calculated once."""
    generator, once = np.random.default_rng(0), cache(interval)
    found = [once(*draw(generator)) for _ in range(SAMPLES)]
    return sum(figure.low - 1e-12 <= truth <= figure.high + 1e-12 for figure in found) / SAMPLES


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3, 0.5, 0.95, 0.98])
@pytest.mark.parametrize("questions", [20, 43, 250])
def test_the_interval_of_a_share_covers_it(questions: int, share: float) -> None:
    covered = coverage(
        share,
        lambda generator: (generator.binomial(questions, share),),
        lambda right: mean_of_shares([1] * right + [0] * (questions - right), questions),
    )
    assert 0.91 <= covered <= 0.995


@pytest.mark.parametrize(("up", "down"), [(0.98, 0), (0.95, 0.05), (0.5, 0), (0.6, 0.3), (0.2, 0.05), (0.05, 0.05)])
@pytest.mark.parametrize("questions", [20, 43, 250])
def test_the_interval_of_a_paired_change_covers_it(questions: int, up: float, down: float) -> None:
    covered = coverage(
        up - down,
        lambda generator: tuple(generator.multinomial(questions, [up, down, 1 - up - down])),
        lambda risen, fallen, same: change_of_shares([1] * risen + [-1] * fallen + [0] * same),
    )
    assert covered >= 0.92


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2, 2), (20, 0.5)])
def test_several_answers_to_a_question_are_not_taken_for_independent(a: float, b: float) -> None:
    def draw(generator: np.random.Generator) -> tuple:
        return tuple(generator.binomial(4, generator.beta(a, b, 43)) / 4)

    assert coverage(a / (a + b), draw, lambda *shares: mean_of_shares(shares, 4 * len(shares))) >= 0.92


def test_43_of_43_is_not_certainty() -> None:
    assert mean_of_shares([1.0] * 43, 43).low == pytest.approx(0.918, abs=0.001), "43 / (43 + 1.96²)"
    assert mean_of_shares([0.0] * 43, 43).high == pytest.approx(0.082, abs=0.001)
    assert 0.8 < change_of_shares([1.0] * 43).low < 0.95


def test_the_exact_test_is_mcnemar_s_and_decides_whether_a_change_is_sure() -> None:
    for risen, fallen in ((5, 0), (6, 0), (9, 2), (20, 9), (3, 3), (0, 0)):
        changes = [1.0] * risen + [-1.0] * fallen + [0.0] * 20
        expected = binomtest(risen, risen + fallen).pvalue if risen + fallen else 1
        assert probability_of_signs(changes) == pytest.approx(expected)
        assert change_of_shares(changes).excludes_zero == (expected < 0.05)


def test_the_exact_test_takes_parts_of_answers_as_they_are() -> None:
    """Of the 2⁴ ways to give 0.25, 0.5, 0.75 and 1 their signs, two come as far as all together."""
    assert probability_of_signs([0.25, 0.5, 0.75, 1]) == pytest.approx(2 / 16)
    assert probability_of_signs([0.25, 0.5, 0.75, -1]) == 14 / 16
    assert probability_of_signs([0.333, 0.71, 0.2, 0.9]) == pytest.approx(2 / 16)


def test_counts_are_bootstrapped_by_bca() -> None:
    counts = np.round(np.random.default_rng(0).lognormal(4, 0.5, 43))
    other = bootstrap((counts,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    figure = mean_of_counts(counts.tolist())
    assert (figure.low, figure.high) == pytest.approx((other.low, other.high), rel=0.02)


@pytest.mark.parametrize(("values", "ends"), [([7.0], None), ([7.0, 7.0], (7, 7)), ([0.0] * 30 + [5.0], (0, 0.81))])
def test_counts_that_hardly_differ(values: list[float], ends: tuple[float, float] | None) -> None:
    figure = mean_of_counts(values)
    assert figure.ends == (None if ends is None else pytest.approx(ends, abs=0.01)) and not math.isnan(figure.mean)
