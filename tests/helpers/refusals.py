"""A configuration that is refused, and its cure typed as shown."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, Problem


def command(*arguments: str) -> list[str]:
    return [*arguments, *([] if any(argument.startswith("stage=") for argument in arguments) else ["stage=plan"])]


def refused(*arguments: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as error:
        resolve(command(*arguments))
    return {problem.key: problem for problem in error.value.problems}


def pastes(cure: str) -> list[list[str]]:
    """What a cure offers to be typed: the overrides of each alternative; prose is left out."""
    found = []
    for part in re.split(r", or |; |\? |, (?=which |and )", cure):
        text = re.sub(r"^(for instance|did you mean|leave one:) ", "", part).removesuffix("?")
        words = shlex.split(text) if text.startswith("'") else text.split()
        overrides = list(itertools.takewhile(lambda word: re.match(r"[\w./]+=.", word) and "…" not in word, words))
        if overrides and not any("<" in word for word in overrides):
            found.append([word.removesuffix(",") for word in overrides])
    return found


def cures(problem: Problem, cure: str, arguments: list[str]) -> None:
    """The problem names the cure, and each alternative that can be typed cures it, whatever else was typed."""
    assert cure in problem.cure, problem
    for overrides in pastes(problem.cure):
        replaced = {word.partition("=")[0] for word in overrides} | {problem.key}
        kept = [a for a in arguments if not a.startswith("+") and a.partition("=")[0] not in replaced]
        if problem.key not in {word.partition("=")[0] for word in overrides}:
            kept += [a for a in arguments if a.partition("=")[0] == problem.key and a not in kept]
        try:
            resolve(command(*kept, *overrides))
        except ConfigError as error:
            assert problem.what not in {p.what for p in error.problems}, (overrides, error)
            raise AssertionError((overrides, str(error))) from error
