"""A request that is not taken: what is wrong with it, in words that stay short and can be sent whatever it held."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

STARTING = "the engine has ended and is being started again; try again later"
VLLM_TAKES_IT = "deployment=vllm takes it"
"""Said of what OpenAI's format has and ftkit's server refuses, whatever its engine."""


class Refused(Exception):
    """A request that gets a 4xx.

    Args:
        message: what is wrong and what to send.
        field: where, ``messages[0].role`` for instance; empty for the body.
        status: of HTTP.
        code: OpenAI's word for it, ``context_length_exceeded`` for instance.
    """

    def __init__(self, message: str, field: str = "", status: int = 400, code: str | None = None):
        self.message, self.field, self.status, self.code = sendable(message), sendable(field), status, code
        super().__init__(self.message)


def sendable(text: str) -> str:
    """The text with what UTF-8 cannot hold written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value for an error message, cut to a sensible length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "something nested very deeply"
    return text if len(text) <= 48 else f"{text[:45]}…"


def hint(name: str, known: Iterable[str], listed: Iterable[str]) -> str:
    """The known name that was meant, or else all that are worth listing."""
    near = difflib.get_close_matches(name[:64], list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"the fields are {', '.join(listed)}"
