"""What is measured of an answer: language of its thinking, form, ending, correctness."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


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
        return japanese_share(self.thinking) > 0.5

    @property
    def right(self) -> bool:
        return normal(self.output) == normal(self.expected)


@dataclass(frozen=True)
class Measures:
    """Shares of a set of answers, each from 0 to 1; ``tokens`` is the mean number generated."""

    thinks_in_japanese: float
    parses: float
    finished: float
    right: float
    tokens: float


def measure(answers: Sequence[Answer]) -> Measures:
    """Shares over answers, at least one."""
    share = {
        name: sum(getattr(a, name) for a in answers) / len(answers)
        for name in ("thinks_in_japanese", "parses", "finished", "right", "tokens")
    }
    return Measures(**share)


def japanese_share(text: str) -> float:
    """Share of a text's letters that are kana or kanji; 0 when it has no letters."""
    letters = [character for character in text if character.isalpha()]
    return sum(_is_japanese(letter) for letter in letters) / len(letters) if letters else 0.0


def normal(text: str) -> str:
    """A text with widths unified and white space dropped, for comparison."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _is_japanese(letter: str) -> bool:
    name = unicodedata.name(letter, "")
    return name.startswith(("HIRAGANA", "KATAKANA", "CJK UNIFIED", "CJK COMPATIBILITY", "HALFWIDTH KATAKANA"))
