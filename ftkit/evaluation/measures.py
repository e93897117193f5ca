"""What is measured of an answer: language of its thinking, form, ending, correctness."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from ftkit.data.languages import languages


@dataclass(frozen=True)
class Answer:
    """One question and what a model made of it.

    Attributes:
        row: number of the source row.
        question: the user's message.
        expected: the row's final answer.
        thinking: text of the analysis channel.
        output: text of the final channel; empty when there was none.
        parses: it is Harmony from beginning to end, with a final answer.
        finished: the model ended by itself.
        tokens: tokens generated.
    """

    row: int
    question: str
    expected: str
    thinking: str
    output: str
    parses: bool
    finished: bool
    tokens: int

    @property
    def thinks_in_japanese(self) -> bool:
        return languages([self.thinking])[0] in JAPANESE

    @property
    def right(self) -> bool:
        return normal(self.output) == normal(self.expected)

    @property
    def right_number(self) -> bool:
        """The last number is the one expected; where none is expected, the whole answer."""
        wanted = last_number(self.expected)
        return self.right if wanted is None else last_number(self.output) == wanted

    @property
    def loops(self) -> bool:
        return bool(LOOP.search(self.thinking) or LOOP.search(self.output))


JAPANESE = ("Japanese", "kanji alone")

MEASURES = ("thinks_in_japanese", "parses", "finished", "loops", "right", "right_number", "tokens")
"""What is measured of each answer, from 0 to 1, and ``tokens``, the number generated."""

LOOP = re.compile(r"(.{8,80}?)\1{3,}", re.DOTALL)
"""The same 8 to 80 characters four times in a row."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
RESAMPLES = 2_000


@dataclass(frozen=True)
class Figure:
    """A mean over answers with its 95 % bootstrap interval.

    Attributes:
        mean: over all answers.
        low: 2.5th percentile of the means of 2,000 resamples.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}  {self.low:.2f}–{self.high:.2f}"


def figures(answers: Sequence[Answer]) -> dict[str, Figure]:
    """Each of ``MEASURES`` over at least one answer."""
    return {name: _figure([float(getattr(a, name)) for a in answers]) for name in MEASURES}


def differences(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Figure]:
    """What has changed, question by question: means of after − before, paired."""
    pairs = list(zip(before, after, strict=True))
    return {
        name: _figure([float(getattr(new, name)) - float(getattr(old, name)) for old, new in pairs])
        for name in MEASURES
    }


def _figure(values: Sequence[float]) -> Figure:
    """Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) with a fixed seed."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return Figure(float(np.mean(values)), float(low), float(high))


def last_number(text: str) -> Decimal | None:
    """The last number of a text, whatever its width and thousands separators."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    return Decimal(found[-1].replace(",", "")) if found else None


def normal(text: str) -> str:
    """A text with widths unified and white space dropped, for comparison."""
    return "".join(unicodedata.normalize("NFKC", text).split())
