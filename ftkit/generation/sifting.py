"""Which answers are kept: right, in the wanted language, well-formed, ended, not long, not alike; others by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ftkit.config.generation import Generate
from ftkit.data.refused import Refused
from ftkit.data.splits import keys, normal
from ftkit.data.thinking import split_thinking
from ftkit.evaluation.measures import Answer, probable_language
from ftkit.evaluation.thinking import is_japanese

KEPT = "kept"
CUT_OFF, ILL_FORMED, WRONG = "does not end", "is not well-formed", "is not right"
LANGUAGE, LOOPS, LONG = "thinks in another language", "repeats itself in a loop", "thinks too long"
ALIKE, ENOUGH = "thinks like one that is kept", "more than generate.keep of the question"
REASONS = (CUT_OFF, ILL_FORMED, WRONG, LANGUAGE, LOOPS, LONG, ALIKE, ENOUGH)
"""Why an answer is not kept, in the order in which it is asked; each is counted by the first that holds."""


@dataclass
class Sifted:
    """Answers with what became of them.

    Attributes:
        verdicts: of each answer, ``KEPT`` or one of ``REASONS``.
    """

    answers: Sequence[Answer]
    verdicts: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.verdicts)

    def with_verdict(self, *verdicts: str) -> Iterator[Answer]:
        return (answer for answer, found in zip(self.answers, self.verdicts, strict=True) if found in verdicts)

    def kept_of(self) -> dict[int, list[Answer]]:
        """The kept answers by the row of their question."""
        found: dict[int, list[Answer]] = defaultdict(list)
        for answer in self.with_verdict(KEPT):
            found[answer.row].append(answer)
        return found

    def pairs(self, most: int) -> Iterator[tuple[Answer, Answer]]:
        """A kept answer and one that is wrong, or thinks in another language, of the same question.

        Args:
            most: pairs of a question.
        """
        kept, rejected = self.kept_of(), defaultdict[int, list[Answer]](list)
        for verdict in (WRONG, LANGUAGE):
            for answer in self.with_verdict(verdict):
                if answer.output and (answer.thinking, answer.output) not in _texts(rejected[answer.row]):
                    rejected[answer.row].append(answer)
        for row, chosen in kept.items():
            yield from zip(chosen[:most], rejected[row], strict=False)


def _texts(answers: Sequence[Answer]) -> set[tuple[str, str]]:
    return {(answer.thinking, answer.output) for answer in answers}


def sift(answers: Sequence[Answer], settings: Generate, tag: str) -> Sifted:
    """Judge answers; those of a question stand together.

    Args:
        tag: of ``dataset.thinking_tag``, by which a row is taken apart again.
    """
    found, kept = Sifted(answers), defaultdict[int, list[Answer]](list)
    for answer in answers:
        verdict = fault_of(answer, settings, tag) or _beside(answer, kept[answer.row], settings)
        if verdict == KEPT:
            kept[answer.row].append(answer)
        found.verdicts.append(verdict)
    return found


def fault_of(answer: Answer, settings: Generate, tag: str) -> str:
    """Why an answer is of no use, whatever else is kept; empty for one that is."""
    if not answer.finished:
        return CUT_OFF
    if not answer.parses or not answer.thinking.strip() or not _comes_back(answer, tag):
        return ILL_FORMED
    if not answer.right:
        return WRONG
    if settings.language and not in_language(answer.thinking, settings.language):
        return LANGUAGE
    if answer.loops:
        return LOOPS
    if settings.max_thinking_tokens and answer.thinking_tokens > settings.max_thinking_tokens:
        return LONG
    return ""


def in_language(text: str, language: str) -> bool:
    """Whether a text is in a language; Japanese by its letters, as the evaluation judges, others by py3langid."""
    return is_japanese(text) if language == "ja" else probable_language(text) == language


def _beside(answer: Answer, kept: Sequence[Answer], settings: Generate) -> str:
    if len(kept) >= settings.keep:
        return ENOUGH
    return ALIKE if any(_alike(answer.thinking, other.thinking, settings.near_duplicates) for other in kept) else KEPT


def _alike(one: str, other: str, likeness: float) -> bool:
    if normal(one) == normal(other):
        return True
    if likeness == 1:
        return False
    found = keys([one, other], ["", ""], near_duplicates=True).signatures
    return bool(np.mean(found[0] == found[1]) >= likeness)


def _comes_back(answer: Answer, tag: str) -> bool:
    """Whether the row that is written of it is taken apart into the same thinking and answer."""
    try:
        thinking, output = split_thinking(f"<{tag}>{answer.thinking}</{tag}>{answer.output}", tag)
    except Refused:
        return False
    return bool(thinking) and bool(output.strip())
