"""What goes back to the client: whole or as server-sent events, in ftkit's format or in OpenAI's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from ftkit.serving.endpoint.model import Answering
from ftkit.serving.endpoint.requests import Refused, Request

OPENAI_NAMES = {"thinking": "reasoning_content", "output": "content"}
ERROR_TYPES = {429: "rate_limit_error", 500: "server_error"}


def body(request: Request, answer: dict[str, Any]) -> dict[str, Any]:
    """The body of a whole answer.

    Args:
        answer: in ftkit's format.
    """
    if not request.model:
        return answer
    message = {"role": "assistant"} | {name: answer[kind] for kind, name in OPENAI_NAMES.items()}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer["finish_reason"]}
    return OpenAI(request).heading("chat.completion") | {"choices": [choice], "usage": _total(answer["usage"])}


def error_body(error: Refused) -> dict[str, Any]:
    """The body of a refusal: the message, and the field that is wrong under ftkit's name and OpenAI's."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "field": error.field, "type": kind, "param": error.field or None}}


def events(answering: Answering, gone: Callable[[], bool]) -> Iterator[str]:
    """The answer as server-sent events while it is generated.

    Args:
        gone: whether the client has gone, which ends it.
    """
    form = OpenAI(answering.request) if answering.request.model else Own()
    try:
        yield from map(_event, form.opening())
        for kind, text in answering.pieces(gone):
            yield _event(form.piece(kind, text))
        yield from map(_event, form.closing(answering.result()))
    except Refused as error:
        yield _event(error_body(error))


def _event(data: dict[str, Any] | str) -> str:
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"


class Own:
    """Pieces of ``thinking`` and ``output``; the last event has what the whole answer has beside them."""

    def opening(self) -> list[dict[str, Any] | str]:
        return []

    def piece(self, kind: str, text: str) -> dict[str, Any]:
        return {kind: text}

    def closing(self, answer: dict[str, Any]) -> list[dict[str, Any] | str]:
        return [{name: value for name, value in answer.items() if name not in OPENAI_NAMES}]


class OpenAI:
    """Chunks of a chat completion; the thinking is in ``reasoning_content``."""

    def __init__(self, request: Request):
        self._request = request
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def heading(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def opening(self) -> list[dict[str, Any] | str]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, kind: str, text: str) -> dict[str, Any]:
        return self._chunk({OPENAI_NAMES[kind]: text})

    def closing(self, answer: dict[str, Any]) -> list[dict[str, Any] | str]:
        last = self._chunk({}, answer["finish_reason"])
        usage = self.heading("chat.completion.chunk") | {"choices": [], "usage": _total(answer["usage"])}
        return [last, usage, "[DONE]"] if self._request.include_usage else [last, "[DONE]"]

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self.heading("chat.completion.chunk") | {"choices": [choice]}


def _total(usage: dict[str, int]) -> dict[str, int]:
    return usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}
