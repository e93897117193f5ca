"""What is measured of an answer: language of its thinking, form, ending, correctness."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np

from ftkit.data.languages import languages


@dataclass(frozen=True)
class Answer:
    """What a model made of a question.

    Attributes:
        row: number of the source row.
        sample: which of the answers to this question, from 0.
        question: the user's message.
        expected: the answer that is right.
        match: when it is right: ``exact``, ``last-number`` or ``contains``.
        thinking: text of the analysis channel.
        output: text of the final channel; empty when there was none.
        parses: it is Harmony from beginning to end, with a final answer.
        finished: the model ended by itself.
        tokens: tokens generated.
        thinking_tokens: of these, in the thinking's text.
        seconds: its share of the time that its batch took.
    """

    row: int
    sample: int
    question: str
    expected: str
    match: str
    thinking: str
    output: str
    parses: bool
    finished: bool
    tokens: int
    thinking_tokens: int
    seconds: float

    @property
    def thinks_in_japanese(self) -> bool:
        """By the letters that most of the thinking is written in."""
        return languages([self.thinking])[0] in JAPANESE

    @property
    def japanese_probability(self) -> float:
        """How probable py3langid, which knows 97 languages, holds it that the thinking is Japanese."""
        return dict(_identifier().rank(self.thinking))["ja"]

    @property
    def right(self) -> bool:
        """As ``match`` says."""
        return MATCHES[self.match](self.output, self.expected)

    @property
    def right_number(self) -> bool:
        """The last number is the one expected; where none is expected, the whole answer."""
        return last_number_matches(self.output, self.expected)

    @property
    def loops(self) -> bool:
        return bool(LOOP.search(self.thinking) or LOOP.search(self.output))


def exact(output: str, expected: str) -> bool:
    """The same text, widths and white space aside."""
    return normal(output) == normal(expected)


def last_number_matches(output: str, expected: str) -> bool:
    """The last number is the expected one's last; where that has none, the whole text."""
    wanted = last_number(expected)
    return exact(output, expected) if wanted is None else last_number(output) == wanted


def contains(output: str, expected: str) -> bool:
    """The expected text stands somewhere in the output, widths and white space aside."""
    return normal(expected) in normal(output)


MATCHES = {"exact": exact, "last-number": last_number_matches, "contains": contains}
"""The rules of ``evaluation.match``."""

JAPANESE = ("Japanese", "kanji alone")

MEASURES = {
    "thinks_in_japanese": "thinks in Japanese",
    "japanese_probability": "probability of Japanese, by py3langid",
    "parses": "parses as Harmony with a final answer",
    "finished": "ends by itself",
    "loops": "repeats itself in a loop",
    "right": "right answer",
    "right_number": "right number",
    "thinking_tokens": "tokens of thinking",
    "tokens": "tokens in all",
}
"""What is measured of each answer, from 0 to 1 but for the tokens, and how it is called."""

LOOP = re.compile(r"(.{8,80}?)\1{3,}", re.DOTALL)
"""The same 8 to 80 characters four times in a row."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
RESAMPLES = 2_000


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


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
    """Each of ``MEASURES`` over at least one answer; several answers to a question count as one, their mean."""
    return {name: _figure(list(by_question(answers, name).values())) for name in MEASURES}


def differences(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Figure]:
    """What has changed, question by question: means of after − before, paired."""
    changes = {}
    for name in MEASURES:
        old, new = by_question(before, name), by_question(after, name)
        changes[name] = _figure([new[row] - value for row, value in old.items()])
    return changes


def by_question(answers: Sequence[Answer], name: str) -> dict[int, float]:
    """A measure's mean over the answers to each question, by its row."""
    values: dict[int, list[float]] = defaultdict(list)
    for answer in answers:
        values[answer.row].append(float(getattr(answer, name)))
    return {row: fmean(found) for row, found in values.items()}


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
