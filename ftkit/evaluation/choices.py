"""Questions with choices: the choices are numbered below the question, and the right one's number is the answer."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from random import Random


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its choices below it, ``1. …``, one a line."""
    return question + "\n\n" + "\n".join(f"{number}. {text}" for number, text in enumerate(choices, start=1))


def shuffled(count: int, question: str, seed: int) -> list[int]:
    """An order of so many choices, by the question and the seed: the same one wherever the question stands."""
    digest = hashlib.sha256(f"{seed} {question}".encode()).digest()
    order = list(range(count))
    Random(int.from_bytes(digest[:8], "big")).shuffle(order)
    return order


def place_of(label: str, choices: Sequence[str]) -> int | None:
    """Which of the choices a label means, from 0: a letter, a number from 0, or a choice's own text; None for none."""
    label = label.strip()
    if label.upper() in string.ascii_uppercase[: len(choices)] and len(label) == 1:
        return string.ascii_uppercase.index(label.upper())
    if label.removesuffix(".0").isdecimal():
        place = int(label.removesuffix(".0"))
        return place if place < len(choices) else None
    return choices.index(label) if label in choices else None
