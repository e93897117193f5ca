"""Requests of OpenAI's Responses API as chat completions: each has its whole chat, for nothing is kept here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.serving.endpoint.refusals import Refused, hint, shown
from ftkit.serving.endpoint.sampling import SETTINGS

SAME = (
    *("model", "stream", "temperature", "top_p", "seed", "tool_choice", "parallel_tool_calls", "user", "metadata"),
    *("store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", *SETTINGS),
)
"""Fields that chat completions have as well."""
OWN = ("input", "instructions", "max_output_tokens", "reasoning", "text", "tools", "include", "top_logprobs")
WITHOUT_EFFECT = ("max_tool_calls", "stream_options")
"""Of tools that OpenAI runs itself, and of padding against listeners."""
KEPT_NOWHERE = ("previous_response_id", "conversation", "prompt")
"""They name what an earlier request left with the server."""
ONLY: dict[str, tuple[Any, ...]] = {"background": (False,), "truncation": ("disabled",)}
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
REPEATED = {
    **{"instructions": None, "metadata": {}, "max_output_tokens": None, "tools": [], "tool_choice": "auto"},
    **{"parallel_tool_calls": True, "reasoning": {}, "text": {"format": {"type": "text"}}, "user": None},
    **{"truncation": "disabled"},
}
"""Fields of a response that are those of its request, with what they are where that has none."""
RENAMED = {
    **{"max_completion_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort"},
    **{"response_format": "text.format", "messages": "input", "tool_call_id": "call_id"},
}


def is_response(body: Mapping[str, Any]) -> bool:
    """Whether a body that speaks OpenAI's format, at a path that takes all of them, is one of these."""
    return "model" in body and "input" in body and "messages" not in body


class AsChat:
    """A request's body as that of a chat completion.

    Args:
        body: without what is null.

    Attributes:
        body: the chat completion's.
        repeated: what the response says of its request.

    Raises:
        Refused: a field is unknown, or asks for what is not kept or not done here.
    """

    def __init__(self, body: Mapping[str, Any]):
        _check_names(body)
        self._places: list[str] = []
        self._messages: list[dict[str, Any]] = []
        self._thinking = ""
        self.repeated = {name: body.get(name, usual) for name, usual in REPEATED.items()}
        self.body = {name: body[name] for name in SAME if name in body}
        if (instructions := body.get("instructions", "")) != "":
            self._add("instructions", {"role": "system", "content": instructions})
        self._read_input(body.get("input"))
        self.body["messages"] = self._messages
        if "max_output_tokens" in body:
            self.body["max_completion_tokens"] = body["max_output_tokens"]
        if "effort" in (reasoning := _object(body, "reasoning")):
            self.body["reasoning_effort"] = reasoning["effort"]
        if form := _object(body, "text").get("format"):
            self.body["response_format"] = _as_response_format(form)
        if "tools" in body:
            self.body["tools"] = _tools(body["tools"])
        included, most = _included(body.get("include", [])), body.get("top_logprobs", 0)
        self.body |= {"logprobs": LOGPROBS in included or most != 0, "top_logprobs": most}

    def renamed(self, error: Refused) -> Refused:
        """A refusal of the chat completion with this request's names of things."""
        message, field = self._rename(error.message), self._rename(error.field)
        return Refused(message, field, error.status, error.code)

    def _rename(self, text: str) -> str:
        text = re.sub(r"messages\[(\d+)\](\.content\b)?", self._place, text).replace(".function.", ".")
        return re.sub(rf"\b({'|'.join(RENAMED)})\b", lambda found: RENAMED[found[0]], text)

    def _place(self, found: re.Match[str]) -> str:
        place = self._places[min(int(found[1]), len(self._places) - 1)]
        return place + (found[2] or "") if place.endswith("]") else place

    def _add(self, place: str, message: dict[str, Any]) -> dict[str, Any]:
        self._places.append(place)
        self._messages.append(message)
        return message

    def _read_input(self, given: Any) -> None:
        if isinstance(given, str):
            self._add("input", {"role": "user", "content": given})
            return
        if not isinstance(given, list) or not given:
            raise Refused(f"input is {shown(given)}; send text, or a list of items", "input")
        for number, item in enumerate(given):
            self._read_item(item, f"input[{number}]")

    def _read_item(self, item: Any, at: str) -> None:
        if not isinstance(item, dict):
            raise Refused(f'{at} is {shown(item)}; send {{"role": "user", "content": "…"}}', at)
        kind = item.get("type") or "message"
        if kind == "message":
            message = {name: value for name, value in item.items() if name not in ("type", "id", "status", "phase")}
            if message.get("role") == "assistant":
                self._add(at, message | self._thought())
            else:
                self._add(at, message)
        elif kind == "reasoning":
            parts = item.get("content") or item.get("summary") or []
            texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
            self._thinking = "\n\n".join(text for text in texts if isinstance(text, str))
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            last = self._messages[-1] if self._messages else {}
            turn = last if last.get("role") == "assistant" else self._add(at, {"role": "assistant"})
            turn |= self._thought()
            turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
        elif kind == "function_call_output":
            self._add(at, {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        else:
            said = f"{at}.type is {shown(kind)}; this server takes message, reasoning, function_call"
            raise Refused(f"{said} and function_call_output", f"{at}.type", code="unsupported_value")

    def _thought(self) -> dict[str, str]:
        """The reasoning item before a turn, once."""
        thinking, self._thinking = self._thinking, ""
        return {"reasoning_content": thinking} if thinking else {}


def _check_names(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in KEPT_NOWHERE:
            said = f"{name} is {shown(value)}, and this server keeps no responses; send the whole chat in input"
            raise Refused(said, name, code="unsupported_parameter")
        if name in ONLY and value not in ONLY[name]:
            said = f"{name} is {shown(value)}; this server takes {shown(ONLY[name][0])} alone"
            raise Refused(said, name, code="unsupported_value")
        known = (*SAME, *OWN, *WITHOUT_EFFECT, *ONLY)
        if name not in known:
            raise Refused(f"unknown field {shown(name)}; {hint(name, known, OWN)}", name[:64], code="unknown_parameter")


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise Refused(f"{name} is {shown(value)}; send an object", name)
    return {inner: each for inner, each in value.items() if each is not None}


def _as_response_format(form: Any) -> Any:
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
    return form


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise Refused(f"tools is {shown(tools)}; send a list of functions", "tools")
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function" or "name" not in tool:
            said = f"tools[{number}] is {shown(tool)}; this server runs no tools of its own"
            example = '{"type": "function", "name": "…", "parameters": {…}}'
            raise Refused(f"{said}, send functions as in {example}", f"tools[{number}]", code="unsupported_value")
    return [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in tools]


def _included(include: Any) -> Sequence[str]:
    known = (LOGPROBS, ENCRYPTED)  # of the second nothing comes: reasoning is in plain words here
    if not isinstance(include, list) or any(name not in known for name in include):
        raise Refused(f"include is {shown(include)}; this server has {' and '.join(known)}", "include")
    return include
