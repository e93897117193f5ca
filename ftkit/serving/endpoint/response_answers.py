"""Answers of OpenAI's Responses API: a response whole, or the events by which it comes to be."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request

Event = dict[str, Any]


class Responses:
    """One response; its items are reasoning, a message, calls of functions."""

    def __init__(self, request: Request):
        self._request = request
        self._id, self._created, self._number = _id("resp"), int(time.time()), -1
        self._items: list[dict[str, Any]] = []
        self._sent = 0  # characters of the message

    def body(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The response.

        Args:
            answer: in ftkit's format.
        """
        if answer["thinking"]:
            self._items.append(_reasoning(answer["thinking"]))
        if answer["output"]:
            self._items.append(_message(answer["output"], answer.get("logprobs", [])))
        self._items += map(_call, answer.get("tool_calls", ()))
        return self._whole(answer)

    def opening(self) -> list[Event]:
        return [
            self._event(f"response.{status}", response=self._response("in_progress"))
            for status in ("created", "in_progress")
        ]

    def pieces(self, _index: int, kind: str, text: str, logprobs: Callable[[int], list[Any]]) -> list[Event]:
        """The events of a new piece of text."""
        events = []
        item = self._items[-1] if self._items else {}
        if item.get("type") != {"thinking": "reasoning", "output": "message"}[kind]:
            events += self._done()
            item = _reasoning("") if kind == "thinking" else _message("", [])
            part = item["content"][0]
            self._items.append(item | {"status": "in_progress"})
            events.append(self._of_item("response.output_item.added", item=self._items[-1] | {"content": []}))
            events.append(self._of_part("response.content_part.added", part=dict(part)))
        part = self._items[-1]["content"][0]
        part["text"] += text
        if kind == "thinking":
            return [*events, self._of_part("response.reasoning_text.delta", delta=text)]
        self._sent += len(text)
        new = logprobs(self._sent) if self._request.likeliest is not None else []
        part["logprobs"] += new
        return [*events, self._of_part("response.output_text.delta", delta=text, logprobs=new)]

    def closing(self, answers: Sequence[Mapping[str, Any]]) -> list[Event]:
        (answer,) = answers
        events = self._done("incomplete" if answer["finish_reason"] == "length" else "completed")
        for call in map(_call, answer.get("tool_calls", ())):
            self._items.append(call)
            begun = call | {"arguments": "", "status": "in_progress"}
            events.append(self._of_item("response.output_item.added", item=begun))
            of_call = {"item_id": call["id"]}
            arguments = "response.function_call_arguments"
            events.append(self._of_item(f"{arguments}.delta", delta=call["arguments"], **of_call))
            done = {"name": call["name"], "arguments": call["arguments"]}
            events.append(self._of_item(f"{arguments}.done", **done, **of_call))
            events.append(self._of_item("response.output_item.done", item=call))
        whole = self._whole(answer)
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def error(self, error: Refused) -> Event:
        said = {"code": error.code or "server_error", "message": error.message, "param": error.field or None}
        return self._event("error", **said)

    def _done(self, status: str = "completed") -> list[Event]:
        """The events that end the last item, if it is not ended."""
        if not self._items or self._items[-1].get("status") != "in_progress":
            return []
        item = self._items[-1] = self._items[-1] | {"status": status}
        part = item["content"][0]
        kind = part["type"]
        more = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
        return [
            self._of_part(f"response.{kind}.done", text=part["text"], **more),
            self._of_part("response.content_part.done", part=part),
            self._of_item("response.output_item.done", item=item),
        ]

    def _event(self, kind: str, **more: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **more}

    def _of_item(self, kind: str, **more: Any) -> Event:
        return self._event(kind, output_index=len(self._items) - 1, **more)

    def _of_part(self, kind: str, **more: Any) -> Event:
        return self._of_item(kind, item_id=self._items[-1]["id"], content_index=0, **more)

    def _whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        usage = answer["usage"]
        is_cut = answer["finish_reason"] == "length"
        if is_cut and self._items and self._items[-1]["type"] != "function_call":
            self._items[-1] = self._items[-1] | {"status": "incomplete"}
        counted = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": answer["reasoning_tokens"]},
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        }
        response = self._response("incomplete" if is_cut else "completed")
        details = {"incomplete_details": {"reason": "max_output_tokens"}} if is_cut else {}
        note = {"note": answer["note"]} if "note" in answer else {}
        return response | {"output": list(self._items), "usage": counted} | details | note

    def _response(self, status: str) -> dict[str, Any]:
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": request.model,
            "output": [],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "previous_response_id": None,
            "store": False,
            "usage": None,
            **(request.response or {}),
        }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _reasoning(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": _id("rs"), "summary": [], "content": content, "status": "completed"}


def _message(text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}]
    return {"type": "message", "id": _id("msg"), "role": "assistant", "status": "completed", "content": content}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a chat completion's as an item."""
    return {"type": "function_call", "id": _id("fc"), "call_id": call["id"], "status": "completed", **call["function"]}
