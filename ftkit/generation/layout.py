"""Conversations as rows in the layout that ``dataset`` describes: the same settings read them, with another path."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ftkit.chat.messages import Conversation, Message, join_system
from ftkit.config.dataset import Dataset
from ftkit.data.conversations import configured
from ftkit.data.turns import optional

LANGUAGE_LINE = re.compile(r"^reasoning language: (.*)\n*")


def row_of(conversation: Conversation, dataset: Dataset) -> dict[str, Any]:
    """A conversation as ``prepare`` reads it: its own columns, and those that hold the chat."""
    columns, tags = configured(dataset.columns), conversation.tags
    row: dict[str, Any] = {name: text for name, text in tags.items() if name not in columns.values()}
    for key in ("persona", "reasoning_language", "reasoning_effort"):
        if key in columns and columns[key] in tags:
            row[columns[key]] = tags[columns[key]]
    messages = _without_settings(conversation, dataset)
    if "messages" in columns:
        row[columns["messages"]] = [_laid_out(message, dataset) for message in messages]
    else:
        row |= _pair(messages, dataset, columns)
    if conversation.tools:
        row[columns.get("tools", "tools")] = conversation.tools
    return row


def _pair(messages: Sequence[Message], dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
    *before, answer = messages
    pair: dict[str, Any] = {columns[key]: empty for key, empty in (("input", ""), ("history", [])) if key in columns}
    alone = len(before) == 1 and before[0]["role"] == "user"
    pair[columns["question"]] = before[0]["content"] if alone else [_laid_out(message, dataset) for message in before]
    if answer.get("tool_calls"):
        return pair | {columns["answer"]: [_laid_out(answer, dataset)]}
    thinking, text = answer.get("thinking", ""), answer["content"]
    if "thinking" in columns:
        return pair | {columns["thinking"]: thinking, columns["answer"]: text}
    tag = dataset.thinking_tag
    return pair | {columns["answer"]: f"<{tag}>{thinking}</{tag}>{text}" if thinking else text}


def _laid_out(message: Message, dataset: Dataset) -> dict[str, Any]:
    turns = dataset.turns
    names = {"role": turns.role, "content": turns.content, "thinking": optional(turns.thinking)}
    return {names.get(name, name): value for name, value in message.items()}


def _without_settings(conversation: Conversation, dataset: Dataset) -> list[Message]:
    """The messages without the part of the system message that the settings, or the row's columns, put there again."""
    messages = conversation.messages
    if messages[0]["role"] != "system":
        return messages
    columns, tags = configured(dataset.columns), conversation.tags
    language, persona = (
        tags.get(columns.get(key, "")) or getattr(dataset, key) or "" for key in ("reasoning_language", "persona")
    )
    text = messages[0]["content"]
    found = LANGUAGE_LINE.match(text)
    own = found.group(1) if found and found.group(1) != language else None
    rest = text[found.end() :] if found else text
    persona = LANGUAGE_LINE.sub("", persona)  # a column's may have the line in it
    if persona and rest.startswith(persona):
        rest = rest[len(persona) :].lstrip("\n")
    text = join_system(own, rest)
    return [messages[0] | {"content": text}, *messages[1:]] if text else messages[1:]


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form of TRL and of OpenAI's servers, without what is ftkit's own."""
    return [{name: value for name, value in message.items() if name != "train"} for message in messages]


def line_of(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
