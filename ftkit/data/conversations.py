"""Rows to conversations: a question and its answer, or a whole chat, become system, user and assistant messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ftkit.config.groups import Dataset
from ftkit.data.readers import RawRow

SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
"""Text that a Harmony tokenizer would read as a special token, wherever it stands."""

EFFORTS = ("low", "medium", "high")
_TAG = re.compile(r"</?think>", re.IGNORECASE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")

Message = dict[str, str]


class Refused(ValueError):
    """A row that cannot become a conversation.

    Args:
        reason: the same for all rows with this fault; they are counted by it.
        detail: what differs from row to row.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """One row as messages.

    Attributes:
        row: number of the source row.
        messages: system (when there is one), then user and assistant in turn; an assistant's has ``content`` and mostly
            ``thinking``.
        reasoning_effort: ``low``, ``medium`` or ``high``.
        tags: the row's other columns that hold text.
    """

    row: int
    messages: list[Message]
    reasoning_effort: str
    tags: dict[str, str]

    @property
    def question(self) -> str:
        """What the user says, all turns; the split goes by it."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def holds_special_tokens(self) -> bool:
        return any(SPECIAL_TOKEN.search(text) for message in self.messages for text in message.values())


def system_message(dataset: Dataset) -> str:
    """The system message of conversations that bring none of their own; may be empty."""
    return _joined(dataset.reasoning_language, dataset.persona)


def _joined(language: str | None, *paragraphs: str | None) -> str:
    """Reasoning language first, then persona and what the row says itself."""
    return "\n\n".join(part for part in (language and f"reasoning language: {language}", *paragraphs) if part)


def to_conversation(raw: RawRow, dataset: Dataset) -> Conversation:
    """Convert one row.

    Raises:
        Refused: with the reason, when the row cannot be used whole.
    """
    if raw.values is None:
        raise Refused(raw.reason, raw.detail)
    return _Row(raw.values, dataset).conversation(raw.number)


class _Row:
    def __init__(self, values: dict[str, Any], dataset: Dataset):
        self._values = values
        self._dataset = dataset
        self._columns = dataset.columns

    def conversation(self, number: int) -> Conversation:
        chat = self._pair() if self._columns.messages is None else self._chat(self._columns.messages)
        own = chat.pop(0)["content"] if chat and chat[0]["role"] in ("system", "developer") else None
        check_order([message["role"] for message in chat])
        if system := _joined(self._setting("reasoning_language"), self._setting("persona"), own):
            chat.insert(0, {"role": "system", "content": system})
        return Conversation(number, chat, self._effort(), self._tags())

    def _pair(self) -> list[Message]:
        question, answer = str(self._columns.question), str(self._columns.answer)
        before = (
            self._chat(question)
            if isinstance(self._values.get(question), list)
            else [{"role": "user", "content": self._text(self._column(question), question)}]
        )
        if isinstance(self._values.get(answer), list):
            return before + self._chat(answer)
        thinking = self._columns.thinking and self._values.get(self._columns.thinking)
        return [*before, self._assistant(self._column(answer), thinking, answer)]

    def _chat(self, column: str) -> list[Message]:
        given = self._column(column)
        if not isinstance(given, list):
            raise Refused(f"{column} is {_kind(given)}, not a list of messages")
        return [self._message(message, f"{column}[{i}]") for i, message in enumerate(given)]

    def _message(self, given: Any, at: str) -> Message:
        turns = self._dataset.turns
        if not isinstance(given, dict):
            raise Refused("a message is no object", f"{at} is {_kind(given)}")
        name = given.get(turns.role)
        role = turns.roles.get(name, name) if isinstance(name, str) else name
        if role not in ("system", "developer", "user", "assistant"):
            raise Refused(f"a message's {turns.role} is none that is known", f"{at}.{turns.role} is {name!r}")
        content = given.get(turns.content)
        if role == "assistant":
            return self._assistant(content, given.get(turns.thinking), at)
        return {"role": role, "content": self._text(content, at)}

    def _assistant(self, answer: Any, thinking: Any, at: str) -> Message:
        text = self._text(answer, at)
        if thinking is not None and (not isinstance(thinking, str) or thinking.strip()):
            if _TAG.search(text):
                raise Refused("the thinking stands in a field of its own and in <think> too")
            return {"role": "assistant", "thinking": self._text(thinking, f"thinking of {at}"), "content": text}
        if self._dataset.thinking == "optional" and not _TAG.search(text):
            return {"role": "assistant", "content": text}
        thinking, content = split_thinking(text)
        return {"role": "assistant", "thinking": thinking, "content": content}

    def _setting(self, name: str) -> str | None:
        """A setting, or what a column says for this row."""
        column = getattr(self._columns, name)
        value = column and self._values.get(column)
        return self._text(value, column) if value else getattr(self._dataset, name)

    def _effort(self) -> str:
        effort = self._setting("reasoning_effort")
        if effort not in EFFORTS:
            raise Refused("the reasoning effort is none of low, medium, high", repr(effort))
        return effort

    def _tags(self) -> dict[str, str]:
        columns = self._columns
        used = (columns.question, columns.answer, columns.thinking, columns.messages)
        tags = {key: value for key, value in self._values.items() if isinstance(value, str) and key not in used}
        for key, value in tags.items():
            if _HALF.search(key) or _HALF.search(value):
                raise Refused("a column holds half a surrogate pair, which is no text", repr(key))
        return tags

    def _column(self, column: str) -> Any:
        if column not in self._values:
            raise Refused(f"no column {column!r}")
        return self._values[column]

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise _refused(name, f"is {_kind(value)}, not text")
        if not (text := value.strip()):
            raise _refused(name, "is empty")
        if _NO_TEXT.search(text):
            raise _refused(name, "holds characters that are no text (NUL, half a surrogate pair, or not UTF-8)")
        if self._dataset.special_tokens == "refuse" and (found := SPECIAL_TOKEN.search(text)):
            raise _refused(name, f"holds the special token {found.group()}, which would end or forge a message")
        return text


def _refused(name: str, what: str) -> Refused:
    """Of a message in a chat, its place is a detail."""
    general = re.sub(r"\[\d+\]", "", name)
    return Refused(f"{general} {what}", "" if general == name else f"in {name.split()[-1]}")


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
        raise Refused("the answer's tags are not one <think>…</think>", " ".join(tags[:8]))
    before, thinking, content = (part.strip() for part in _TAG.split(answer))
    if before:
        raise Refused("text stands before <think>", repr(before[:40]))
    if not thinking:
        raise Refused("the <think> block is empty")
    if not content:
        raise Refused("no final answer follows </think>")
    return thinking, content


def check_order(roles: list[str]) -> None:
    """User and assistant take turns, the user begins, the assistant ends.

    Raises:
        Refused: they do not.
    """
    if not roles:
        raise Refused("the chat has no message")
    for i, role in enumerate(roles):
        if role != (due := ("user", "assistant")[i % 2]):
            raise Refused("the roles are in the wrong order", f"{role} speaks where it is the {due}'s turn")
    if roles[-1] != "assistant":
        raise Refused("the chat ends without an answer")


def _kind(value: Any) -> str:
    return {
        type(None): "null",
        list: "a list",
        dict: "an object",
        int: "a number",
        float: "a number",
        bool: "a truth value",
        str: "text",
    }.get(type(value), type(value).__name__)
