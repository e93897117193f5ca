"""Rewards of ``method.rewards`` that ftkit brings: what evaluate measures, as a number for each answer; more is better.

A function of one's own, named ``module.function``, is called as these are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftkit.evaluation.measures import Answer


def right(answers: Sequence[Answer]) -> list[float]:
    """1 where the answer is right, by ``evaluation.match``."""
    return [float(answer.right) for answer in answers]


def language(answers: Sequence[Answer]) -> list[float]:
    """1 where the thinking is Japanese."""
    return [float(answer.thinks_in_japanese) for answer in answers]


def form(answers: Sequence[Answer]) -> list[float]:
    """1 where the answer is of the model's format from beginning to end, and ends by itself."""
    return [float(answer.parses and answer.finished) for answer in answers]


def length(answers: Sequence[Answer]) -> list[float]:
    """The fewer tokens the more: minus a thousandth for each."""
    return [-answer.tokens / 1000 for answer in answers]


def repetition(answers: Sequence[Answer]) -> list[float]:
    """Minus 1 where thinking or answer say the same over and over."""
    return [-float(answer.loops) for answer in answers]
