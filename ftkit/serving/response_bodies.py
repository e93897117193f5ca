"""Answers of OpenAI's Responses API, whole and as events, in ``score.py``'s own format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DELTAS = {"response.reasoning_text.delta": "thinking", "response.output_text.delta": "output"}
ENDS = ("response.completed", "response.incomplete", "response.failed")


def of_response(response: Mapping[str, Any]) -> dict[str, Any]:
    """A whole response.

    Raises:
        LookupError, TypeError: it is none.
    """
    texts: dict[str, list[str]] = {"reasoning": [], "message": []}
    calls = []
    for item in response["output"]:
        if item["type"] == "function_call":
            calls.append({"function": {"name": item["name"], "arguments": item["arguments"]}})
        elif item["type"] in texts:
            texts[item["type"]] += [part["text"] for part in item.get("content") or () if "text" in part]
    ended = "tool_calls" if calls else "stop"
    answer = {
        "thinking": "\n\n".join(texts["reasoning"]),
        "output": "".join(texts["message"]),
        "finish_reason": ended if response["status"] == "completed" else "length",
        "tool_calls": calls,
    }
    if usage := response.get("usage"):
        answer["usage"] = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
    return answer | ({"note": response["note"]} if response.get("note") else {})


def of_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event: new text, or what the end tells beside the texts; nothing of any other."""
    if kind := DELTAS.get(event["type"]):
        return {kind: event["delta"]}
    if event["type"] not in ENDS:
        return {}
    return {name: value for name, value in of_response(event["response"]).items() if name not in DELTAS.values()}
