"""What a chat consists of, for data, training, evaluation and endpoints alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.config.dataset import Dataset

SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
"""Text that a Harmony tokenizer would read as a special token, wherever it stands."""

LANGUAGE_LINE = "reasoning language: "
"""Begins the first line of a system message that says in which language to think."""

EFFORTS = ("low", "medium", "high")
Message = dict[str, Any]
"""One message: ``role`` (system, user, assistant, tool) and ``content``, its text.

An assistant's may have ``thinking``, and ``tool_calls`` as OpenAI writes them, the arguments as JSON text; then
``content`` is what it says before the calls, mostly nothing. ``train: False`` keeps it out of the loss. A tool's has
the ``name`` of the function whose result it is.
"""


class ModelError(Exception):
    """The model cannot be served; the message is one line for the log."""


@dataclass(frozen=True)
class Conversation:
    """One row as messages.

    Attributes:
        row: number of the source row.
        messages: system (when there is one), then user, assistant and tool.
        reasoning_effort: ``low``, ``medium`` or ``high``.
        tags: the row's other columns that hold text.
        tools: functions that may be called, each with ``name``, ``description`` and ``parameters`` (a JSON Schema).
        rejected: of a pair, the worse answer, where the last message is the better one.
    """

    row: int
    messages: list[Message]
    reasoning_effort: str
    tags: dict[str, str]
    tools: list[dict[str, Any]] = field(default_factory=list)
    rejected: Message | None = None

    @property
    def question(self) -> str:
        """What the user says, all turns; the split goes by it."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def opening(self) -> str:
        """The first thing that the user says with the answer to it: equal in all stages of a chat that grows."""
        said: list[str] = []
        for message in self.messages:
            if message["role"] == "user" or (message["role"] == "assistant" and said):
                said += [message["content"], *(call["function"]["arguments"] for call in calls_of(message))]
                if message["role"] == "assistant":
                    break
        return "\n".join(said)

    @property
    def holds_special_tokens(self) -> bool:
        return any(SPECIAL_TOKEN.search(text) for message in self.messages for text in texts_of(message))


def calls_of(message: Message) -> list[dict[str, Any]]:
    """The message's tool calls, each with ``function``: ``name`` and ``arguments``."""
    return message.get("tool_calls") or []


def is_trained(message: Message) -> bool:
    """Whether it is a turn of the assistant that carries loss; one that was read from a table has every key."""
    return message["role"] == "assistant" and message.get("train") is not False


def call_in_words(name: str, arguments: str) -> str:
    """A call as one text, to compare calls by: ``get_weather({"city": "東京"})``."""
    return f"{name}({arguments})"


def texts_of(message: Message) -> Iterator[str]:
    """All free text of a message, in the order in which the assistant writes it."""
    if "thinking" in message:
        yield message["thinking"]
    yield message["content"]
    for call in calls_of(message):
        yield call["function"]["arguments"]


def system_message(dataset: Dataset) -> str:
    """The system message of conversations that bring none of their own; may be empty."""
    return join_system(dataset.reasoning_language, dataset.persona)


def join_system(language: str | None, *paragraphs: str | None) -> str:
    """Reasoning language first, then persona and what the row says itself."""
    return "\n\n".join(part for part in (language and f"{LANGUAGE_LINE}{language}", *paragraphs) if part)


def without_language(messages: Sequence[Message]) -> list[Message]:
    """A conversation's messages without the line of ``join_system`` that asks for a reasoning language."""
    system, *rest = messages
    if system["role"] != "system" or not system["content"].startswith(LANGUAGE_LINE):
        return [*messages]
    left = system["content"].partition("\n\n")[2]
    return [system | {"content": left}, *rest] if left else rest
