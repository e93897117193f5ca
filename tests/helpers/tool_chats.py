"""Messages of chats with tools, as rows hold them."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "東京の天気は？"}
ANSWER = {"role": "assistant", "content": "晴れです。", "thinking": "晴れ。"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "天気", "parameters": SCHEMA}
WRAPPED = {"type": "function", "function": TOOL}


def call(arguments: Any = '{"city": "東京"}', name: str = "get_weather") -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLED = {"role": "assistant", "content": "", "thinking": "調べる。", "tool_calls": [call()]}
RESULT = {"role": "tool", "name": "get_weather", "content": "晴れ"}
PLAIN = {"role": "assistant", "content": "", "tool_calls": [call()]}


def openai(arguments: object = '{"city": "東京"}', **keys) -> dict:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]} | keys
