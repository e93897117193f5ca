"""Rewards as TRL calls them: completions are taken apart once, and what a function gives is checked."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, cast

from ftkit.chat.format import Parser
from ftkit.config.methods import REWARDS
from ftkit.errors import StageError

OURS = "ftkit.evaluation.rewards"
"""Module of the functions that ``REWARDS`` names."""
ANSWER = "ftkit.evaluation.measures", "Answer"
"""What a function gets a list of."""


def function_of(name: str) -> Callable[[Sequence[Any]], Sequence[float]]:
    """The function that a key of ``method.rewards`` names: one of ``REWARDS``, or ``module.function``.

    Raises:
        StageError: there is none.
    """
    module, _, function = (f"{OURS}.{name}" if name in REWARDS else name).rpartition(".")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a function of one's own lies beside one's conf/
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # a module of the user's own may raise anything
        why = f"{type(error).__name__}: {error}"
        cure = f"{module.replace('.', '/')}.py in {here}, with a function {function}(answers)"
        raise StageError(f"the reward {name} cannot be imported: {why}", where="method.rewards", cure=cure) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise StageError(f"the reward {name} is no function", where="method.rewards", cure=f"def {function}(answers)")
    return cast(Callable[[Sequence[Any]], Sequence[float]], found)


class Answers:
    """Completions taken apart, those of one batch at a time, for all rewards of it.

    Args:
        parser: reads what the model writes.
        match: when an answer is right.
    """

    def __init__(self, parser: Parser, match: str):
        self._parser, self._match = parser, match
        self._kind: Any = getattr(import_module(ANSWER[0]), ANSWER[1])
        self._of: list[list[int]] = []
        self._answers: list[Any] = []

    def of(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], rows: Sequence[int],
        questions: Sequence[str], expected: Sequence[str],
    ) -> list[Any]:  # fmt: skip
        """``evaluation.measures.Answer`` of each completion, from token ids."""
        if self._of is not completions:
            self._of = completions  # pyright: ignore
            self._answers = [
                self._answer(*each) for each in zip(prompts, completions, rows, questions, expected, strict=True)
            ]
        return self._answers

    def _answer(self, prompt: list[int], ids: list[int], row: int, question: str, expected: str) -> Any:
        found = self._parser.parse(ids, prompt)
        whole = found.well_formed and bool(found.output)
        return self._kind(
            row, 0, question, expected, self._match, found.thinking, found.output, whole, found.ended, len(ids), 0, 0.0
        )


class Reward:
    """One function of ``method.rewards``, with TRL's signature.

    Args:
        name: as the configuration has it.
        answers: shared by all of them.
        first: whether it is the first, which notes the shares that are watched.
    """

    def __init__(self, name: str, answers: Answers, *, first: bool):
        self.__name__ = name
        self._function, self._answers, self._first = function_of(name), answers, first

    def __call__(
        self, prompts: Any, completions: Any, completion_ids: Any, row: Any, question: Any, expected: Any,
        log_metric: Callable[[str, float], None] | None = None, **more: Any,
    ) -> list[float]:  # fmt: skip
        """A number for each completion.

        Raises:
            StageError: the function raised, or gave something else than a finite number for each.
        """
        answers = self._answers.of(prompts, completion_ids, row, question, expected)
        if self._first and log_metric:
            for name, shares in WATCHED.items():
                log_metric(name, sum(map(shares, answers)) / len(answers))
        return self.values(answers)

    def values(self, answers: Sequence[Any]) -> list[float]:
        """A number for each answer, checked."""
        name = self.__name__
        try:
            given = list(self._function(answers))
        except Exception as error:  # a user's function may raise anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"the reward {name} raised {type(error).__name__}: {error}"
            raise StageError(what, where=f"{place.filename}:{place.lineno}", cure=_WITHOUT.format(name)) from error
        if len(given) != len(answers):
            what = f"the reward {name} gave {len(given)} numbers for {len(answers)} answers"
            raise StageError(what, where="method.rewards", cure="one number for each answer, in their order")
        for answer, value in zip(answers, given, strict=True):
            if not isinstance(value, Real) or not math.isfinite(value):
                what = f"the reward {name} gave {value!r} for an answer to row {answer.row}, which is no finite number"
                raise StageError(what, where="method.rewards", cure=f"a number for: {answer.output[:80]!r}")
        return [float(value) for value in given]


WATCHED: dict[str, Callable[[Any], float]] = {
    "share/language": lambda answer: float(answer.thinks_in_japanese),
    "share/right": lambda answer: float(answer.right),
    "share/form": lambda answer: float(answer.parses),
}
"""Shares of a step's answers, whatever the rewards."""
_WITHOUT = "mend the function, or leave it out: ~method.rewards.{}"
