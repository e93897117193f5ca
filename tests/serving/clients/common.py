"""What each client asks: the server's address and the answer that is expected come from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable

URL, EXPECTED = sys.argv[1:3]
SYSTEM, QUESTION = "reasoning language: Japanese", "12メートルは何センチメートルですか？"
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "double", "description": "doubles", "parameters": PARAMETERS}}


def same(answer: object) -> None:
    """See that it is the answer that is expected."""
    assert answer == EXPECTED, f"{answer!r} is not {EXPECTED!r}"


def some(answer: object) -> None:
    """See that there is an answer."""
    assert isinstance(answer, str) and answer, repr(answer)


def refused(ask: Callable[[], object], field: str) -> None:
    """See that a request is refused for a field, in words that tell what to do."""
    try:
        answer = ask()
    except Exception as error:
        text = str(error)
        assert f"{field} is " in text and "deployment=vllm takes it" in text, text
    else:
        raise AssertionError(f"answered with {answer!r}")
