"""Rows to conversations: question and ``<think>…</think>`` answer become system, user and assistant messages."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from ftkit.config.schema import Dataset
from ftkit.data.readers import RawRow

SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
"""Text that a Harmony tokenizer would read as a special token, wherever it stands."""

_TAG = re.compile(r"</?think>", re.IGNORECASE)


class Refused(ValueError):
    """A row that cannot become a conversation; the message is the reason."""


@dataclass(frozen=True)
class Conversation:
    """One row as messages.

    Attributes:
        row: number of the source row.
        messages: system (when there is one), user, assistant with ``thinking`` and ``content``.
        split: ``train`` or ``heldout``.
        tags: the row's other columns that hold text.
    """

    row: int
    messages: list[dict[str, str]]
    split: str
    tags: dict[str, str]


def system_message(dataset: Dataset) -> str:
    """The system message of every conversation: reasoning language first, then the persona; may be empty."""
    language = dataset.reasoning_language and f"reasoning language: {dataset.reasoning_language}"
    return "\n\n".join(part for part in (language, dataset.persona) if part)


def to_conversation(raw: RawRow, dataset: Dataset) -> Conversation:
    """Convert one row.

    Raises:
        Refused: with the reason, when the row cannot be used whole.
    """
    if raw.values is None:
        raise Refused(raw.reason)
    question = _text(raw.values, dataset.columns.question)
    thinking, content = split_thinking(_text(raw.values, dataset.columns.answer))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "thinking": thinking, "content": content}]
    if system := system_message(dataset):
        messages.insert(0, {"role": "system", "content": system})
    used = (dataset.columns.question, dataset.columns.answer)
    tags = {key: value for key, value in raw.values.items() if key not in used and isinstance(value, str)}
    return Conversation(raw.number, messages, split_of(question, dataset.heldout), tags)


def split_thinking(answer: str) -> tuple[str, str]:
    """Part ``<think>…</think>`` and the final answer; white space around either is dropped.

    Raises:
        Refused: no block, an unclosed one, more than one, text before it, or nothing inside or after it.
    """
    tags = [match.group().lower() for match in _TAG.finditer(answer)]
    if not tags:
        raise Refused("the answer has no <think> block")
    if tags == ["<think>"]:
        raise Refused("the answer's <think> is never closed")
    if tags != ["<think>", "</think>"]:
        raise Refused(f"the answer has {' '.join(tags)} where one <think>…</think> belongs")
    before, thinking, content = (part.strip() for part in _TAG.split(answer))
    if before:
        raise Refused(f"text stands before <think>: {before[:40]!r}")
    if not thinking:
        raise Refused("the <think> block is empty")
    if not content:
        raise Refused("no final answer follows </think>")
    return thinking, content


def split_of(question: str, heldout: float) -> str:
    """``heldout`` for a stable share of all questions, by a hash of the text: a question is always on one side."""
    normal = unicodedata.normalize("NFKC", question).strip().encode()
    position = int.from_bytes(hashlib.sha256(normal).digest()[:8], "big") / 2**64
    return "heldout" if position < heldout else "train"


def _text(values: dict[str, Any], column: str) -> str:
    if column not in values:
        raise Refused(f"no column {column!r}")
    value = values[column]
    if not isinstance(value, str):
        raise Refused(f"{column} is {_kind(value)}, not text")
    if not value.strip():
        raise Refused(f"{column} is empty")
    if found := SPECIAL_TOKEN.search(value):
        raise Refused(f"{column} holds the special token {found.group()}, which would end or forge a message")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused(f"{column} holds characters that are no text (NUL or half a surrogate pair)")
    return value.strip()


def _kind(value: Any) -> str:
    return {
        type(None): "null",
        list: "a list",
        dict: "an object",
        int: "a number",
        float: "a number",
        bool: "a truth value",
    }.get(type(value), type(value).__name__)
