"""Request bodies of Azure ML's own samples and clients, in the format of ``/score``.

{"input_data": {"input_string": [{"role": "user", "content": "…"}], "parameters": {"temperature": 0.5}}}
{"input_data": ["…"]}    {"data": ["…"]}    {"inputs": "…", "parameters": {}}    {"question": "…", "chat_history": []}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.serving.endpoint.refusals import Refused, shown

NAMES = ("input_data", "data", "inputs", "question")
PARAMETERS = {
    **{"max_tokens": "max_new_tokens", "max_length": "max_new_tokens", "stop_sequences": "stop"},
    **{name: name for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop", "reasoning_effort", "stream")},
}
IGNORED = ("return_full_text", "details", "model")


def in_own_format(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body itself if it has none of these shapes.

    Raises:
        Refused: it has one, and holds more than one question, or something else than text.
    """
    given = [name for name in NAMES if name in body]
    if not given or "messages" in body or "prompt" in body:
        return dict(body)
    name = given[0]
    rest = {key: value for key, value in body.items() if key not in (name, "parameters", "chat_history")}
    if name == "question":
        asked = {"messages": [*_history(body.get("chat_history")), {"role": "user", "content": body[name]}]}
        return asked | rest if body.get("chat_history") else {"prompt": body[name]} | rest
    inner, parameters = body[name], body.get("parameters")
    while isinstance(inner, dict):
        if "messages" in inner or "prompt" in inner:
            return {**inner, **rest, **_parameters(parameters)}
        parameters = inner.get("parameters", parameters)
        key = next((key for key in ("input_string", "data", "inputs", "question", "input") if key in inner), None)
        if key is None:
            raise Refused(f"{name} is {shown(inner)}; send input_string, or messages", name)
        inner = inner[key]
    return {**_asked(inner, name), **rest, **_parameters(parameters)}


def _asked(value: Any, name: str) -> dict[str, Any]:
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {"messages": value}
    if isinstance(value, list) and len(value) > 1:
        raise Refused(f"{name} holds {len(value)} texts; send one question a request", name)
    if not isinstance(value, str):
        raise Refused(f"{name} is {shown(value)}; send a text, or a list of messages", name)
    return {"prompt": value}


def _parameters(parameters: Any) -> dict[str, Any]:
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Refused(f"parameters is {shown(parameters)}; send an object", "parameters")
    read: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "do_sample":
            read |= {} if value else {"temperature": 0}
        elif name in PARAMETERS:
            read[PARAMETERS[name]] = value
        elif name not in IGNORED and value is not None:
            field = f"parameters.{name[:64]}"
            raise Refused(f"unknown field {field}; there are {', '.join(PARAMETERS)}", field)
    return read


def _history(history: Any) -> list[dict[str, Any]]:
    """Turns of a prompt flow, ``{"inputs": {"question"}, "outputs": {"answer"}}``, or messages."""
    if not isinstance(history, list):
        return []
    turns = []
    for turn in history:
        asked, answered = (turn.get(side) if isinstance(turn, dict) else None for side in ("inputs", "outputs"))
        if not isinstance(asked, dict) or not isinstance(answered, dict):
            turns.append(turn)
            continue
        for role, said in (("user", asked), ("assistant", answered)):
            turns.append({"role": role, "content": next(iter(said.values()), "")})
    return turns
