"""How sure a mean or a change is: 95 % intervals that hold near 0 and 1, too, where a bootstrap says far too much.

* A mean of shares: Wilson's score interval (E. B. Wilson 1927). Several answers to a question, or probabilities, count
  as so many independent answers as their spread says (L. Kish's effective sample size), never as fewer than there are
  questions.
* A change of shares, question by question: the adjusted interval of Agresti and Min (2005), which adds one question
  that rises and one that falls; it contains 0 wherever the exact test of signs (McNemar's) cannot exclude it.
* A mean or a change of counts: the bias-corrected and accelerated bootstrap (B. Efron 1987).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""97.5th percentile of the normal distribution."""
SIGNIFICANT = 0.05
RESAMPLES = 2_000
STEPS = 100
"""Steps from 0 to 1 that the exact test takes changes in, where they are not all multiples of a larger one."""
SUMS = 20_000
"""Sums that the exact test keeps apart at the most, so that thousands of questions take no longer than a second."""


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval.

    Attributes:
        mean: over all questions.
        low, high: ends of the interval; NaN where a single question cannot tell.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def ends(self) -> tuple[float, float] | None:
        """``low`` and ``high``; None where they are not known."""
        return None if math.isnan(self.low + self.high) else (self.low, self.high)


def mean_of_shares(values: Sequence[float], answers: int) -> Figure:
    """Of each question's share, from 0 to 1.

    Args:
        values: at least one.
        answers: to all of the questions together.
    """
    shares = np.asarray(values, float)
    mean, spread, count = float(shares.mean()), 0.0, len(shares)
    if count > 1:
        spread = float(shares.var(ddof=1)) / count
    of_one = mean * (1 - mean)
    independent = min(max(of_one / spread, count), answers) if spread else (answers if of_one else count)
    centre = (mean + Z**2 / (2 * independent)) / (1 + Z**2 / independent)
    half = Z * math.sqrt(of_one / independent + (Z / (2 * independent)) ** 2) / (1 + Z**2 / independent)
    return Figure(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def change_of_shares(changes: Sequence[float]) -> Figure:
    """Of each question's change, from −1 to 1; at least one."""
    values = np.asarray(changes, float)
    count = len(values) + 2
    centre = float(values.sum()) / count
    half = Z * math.sqrt(max(0.0, (float((values**2).sum()) + 2) / count - centre**2) / count)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    if probability_of_signs(values) >= SIGNIFICANT:
        low, high = min(low, 0.0), max(high, 0.0)
    mean = float(values.mean())
    return Figure(mean, min(low, mean), max(high, mean))


def mean_of_counts(values: Sequence[float]) -> Figure:
    """Of tokens, or of changes in their number; at least one."""
    counts = np.asarray(values, float)
    mean = float(counts.mean())
    if len(counts) == 1:
        return Figure(mean, math.nan, math.nan)
    if np.ptp(counts) == 0:
        return Figure(mean, mean, mean)
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in ("BCa", "percentile"):  # the second for the rare sample whose acceleration is not defined
            found = bootstrap((counts,), np.mean, n_resamples=RESAMPLES, batch=200, method=method, rng=0)
            low, high = map(float, found.confidence_interval)
            if not math.isnan(low + high):
                break
    return Figure(mean, low, high)


def probability_of_signs(changes: Sequence[float] | np.ndarray) -> float:
    """How often chance alone, giving each change its sign, makes their sum as far from 0 as it is; exact, two-sided.

    For changes of −1, 0 and 1 this is McNemar's exact test.
    """
    values = np.abs(np.asarray(changes, float))
    sizes = next(
        (whole for step in range(1, STEPS) if np.allclose(whole := np.rint(values * step), values * step, atol=1e-9)),
        np.rint(values * max(4, min(STEPS, SUMS // len(values)))),
    ).astype(int)
    signed = int(np.sum(sizes * np.sign(changes)))
    reached = np.ones(1)  # probability of each sum from −total to total
    for size in sizes[sizes > 0]:
        wider = np.zeros(len(reached) + 2 * size)
        wider[: len(reached)] += reached / 2
        wider[2 * size :] += reached / 2
        reached = wider
    total = len(reached) // 2
    sums = np.arange(-total, total + 1)
    return float(min(1.0, reached[np.abs(sums) >= abs(signed)].sum()))
