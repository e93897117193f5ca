"""What is measured of an answer: language of its thinking, form, ending, correctness; and means over many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from statistics import fmean
from typing import Any

from ftkit.evaluation.intervals import Figure, change_of_shares, mean_of_counts, mean_of_shares
from ftkit.evaluation.matching import MATCHES, last_number
from ftkit.evaluation.thinking import is_japanese, repeats_itself


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
        """Most letters of the thinking stand in Japanese sentences."""
        return is_japanese(self.thinking)

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
        return last_number(self.output, self.expected)

    @property
    def loops(self) -> bool:
        """The thinking or the answer says the same over and over."""
        return repeats_itself(self.thinking) or repeats_itself(self.output)


MEASURES = {
    "thinks_in_japanese": "thinks in Japanese",
    "japanese_probability": "probability of Japanese, by py3langid",
    "parses": "parses, with a final answer",
    "finished": "ends by itself",
    "loops": "repeats itself in a loop",
    "right": "right answer",
    "right_number": "right number",
    "thinking_tokens": "tokens of thinking",
    "tokens": "tokens in all",
}
"""What is measured of each answer, from 0 to 1 but for the tokens, and how it is called."""

COUNTS = ("thinking_tokens", "tokens")
"""Measures that are no shares, and where neither more nor less is better."""


def probable_language(text: str) -> str:
    """The language that py3langid holds a text to be in, by its two letters."""
    return _identifier().classify(text)[0]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def figures(answers: Sequence[Answer]) -> dict[str, Figure]:
    """Each of ``MEASURES`` over at least one answer; several answers to a question count as one, their mean."""
    found = {}
    for name in MEASURES:
        values = list(by_question(answers, name).values())
        found[name] = mean_of_counts(values) if name in COUNTS else mean_of_shares(values, len(answers))
    return found


def differences(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Figure]:
    """What has changed, question by question: means of after − before, paired."""
    changes = {}
    for name in MEASURES:
        old, new = by_question(before, name), by_question(after, name)
        values = [new[row] - value for row, value in old.items()]
        changes[name] = mean_of_counts(values) if name in COUNTS else change_of_shares(values)
    return changes


def pass_at(answers: Sequence[Answer], k: int) -> dict[int, float]:
    """How probably one of k answers to a question is right, by its row: 1 − C(n − c, k) / C(n, k), without bias.

    Of n answers to a question c are right (M. Chen et al., Evaluating Large Language Models Trained on Code, 2021).
    """
    right: dict[int, list[bool]] = defaultdict(list)
    for answer in answers:
        right[answer.row].append(answer.right)
    return {row: 1 - comb(len(found) - sum(found), k) / comb(len(found), k) for row, found in right.items()}


def by_question(answers: Sequence[Answer], name: str) -> dict[int, float]:
    """A measure's mean over the answers to each question, by its row."""
    values: dict[int, list[float]] = defaultdict(list)
    for answer in answers:
        values[answer.row].append(float(getattr(answer, name)))
    return {row: fmean(found) for row, found in values.items()}
