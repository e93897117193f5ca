"""Rows to conversations: a question and its answer, or a whole chat, become messages."""

from __future__ import annotations

import re
from typing import Any

from ftkit.chat.messages import EFFORTS, Conversation, Message, calls_of, join_system
from ftkit.config.dataset import Columns, Dataset
from ftkit.data.message_order import as_context, check_thinking, in_order
from ftkit.data.preferences import SIDES, is_chat, paired
from ftkit.data.readers import RawRow
from ftkit.data.refused import Account, Refused, Texts, is_empty
from ftkit.data.tool_calls import (
    UNKNOWN,
    WRITTEN_OUT,
    definitions,
    hermes_results,
    hermes_tools,
    is_written_out,
    without_filler,
)
from ftkit.data.turns import Turns, optional

_HALF = re.compile("[\ud800-\udfff]")
_LANGUAGE = re.compile(r"^[ \t]*reasoning language:[ \t]*(\S.*?)[ \t]*$\n*", re.IGNORECASE | re.MULTILINE)
_EFFORT = re.compile(r"^[ \t]*reasoning:[ \t]*(low|medium|high)[ \t]*$\n*", re.IGNORECASE | re.MULTILINE)
_MARKS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
NO_INPUT = "<noinput>"
"""What alpaca's rows hold where there is no input."""
CHAT_COLUMNS = ("question", "input", "history", "answer", "chosen", "rejected", "thinking", "messages", "tools")
"""Columns that are taken apart; those that set a value for a row stay beside its messages too."""
OWN_LANGUAGE = "the row's own line 'reasoning language: …' stands in place of dataset.reasoning_language"
OWN_EFFORT = "the row's own line 'Reasoning: …' stands in place of dataset.reasoning_effort"
OWN_TOOLS = "Hermes' <tools> were moved from the system message to the developer block's tools"


def configured(columns: Columns) -> dict[str, str]:
    """The columns that the settings name, by their keys, without the ``?`` of those that may be missing."""
    return {key: optional(name) for key, name in columns if name is not None}


class Converter:
    """Converts rows, one after another.

    Args:
        dataset: its settings.
        account: takes down what rows carry beside their conversation; remarks only of rows that are kept.
    """

    def __init__(self, dataset: Dataset, account: Account | None = None):
        self._dataset = dataset
        self._account = account or Account()
        self._columns = configured(dataset.columns)
        self._label = self._columns.pop("label", "")
        self._is_label = not (dataset.columns.label or "").endswith("?")
        self._used = frozenset(self._columns.values())
        self._taken_apart = {self._columns[key] for key in CHAT_COLUMNS if key in self._columns}
        self._remarks: set[str] = set()
        self._turns = Turns(dataset, self._account, self._remarks)
        self._texts = Texts(dataset, self._account, self._remarks)
        self._values: dict[str, Any] = {}
        self._own_effort: str | None = None

    def conversation(self, raw: RawRow) -> Conversation:
        """Convert one row.

        Raises:
            Refused: with the reason, when the row cannot be used whole.
        """
        if raw.values is None:
            raise Refused(raw.reason, raw.detail)
        self._values = raw.values
        self._remarks.clear()
        self._own_effort = self._effort_of_column()
        self._count_columns()
        if "chosen" in self._columns:
            found = paired(*(self._whole(raw.number, self._side(key)) for key in SIDES))
        else:
            chat = self._turns_of("messages") if "messages" in self._columns else self._pair()
            found = self._whole(raw.number, chat)
        self._account.remarks.update(self._remarks)
        return found

    def _whole(self, number: int, chat: list[Message]) -> Conversation:
        own: list[str] = []
        while chat and chat[0]["role"] == "system":
            own.append(chat.pop(0)["content"])
        system, tools = self._system(own)
        chat = in_order(_split_results(chat), self._dataset, self._remarks)
        check_thinking(chat, self._dataset, self._remarks)
        for message in chat:
            self._look_at_calls(message, tools)
        if system:
            chat.insert(0, {"role": "system", "content": system})
        return Conversation(number, chat, self._effort(), self._tags(), tools)

    def _look_at_calls(self, message: Message, tools: list[dict[str, Any]]) -> None:
        if calls := calls_of(message):
            without_filler(calls, tools)
            if tools and any(call["function"]["name"] not in {tool["name"] for tool in tools} for call in calls):
                self._remarks.add(UNKNOWN)
        elif message["role"] == "assistant" and is_written_out(message["content"], tools):
            self._remarks.add(WRITTEN_OUT)

    def _pair(self) -> list[Message]:
        before = as_context([*self._history(), *self._question()])
        if "messages" not in self._columns and isinstance(self._column("answer"), list | dict):
            return before + self._completion()
        thinking = self._value("thinking")
        answer = self._turns.answer(self._column("answer"), thinking, self._columns["answer"])
        return [*before, answer]

    def _side(self, key: str) -> list[Message]:
        """The chat that ends with one of two answers, of which that answer alone is trained."""
        given, name = self._column(key), self._columns[key]
        messages = self._turns.messages(given, name) if is_chat(given, self._dataset.turns.role) else None
        if messages and messages[0]["role"] != "assistant":  # a whole chat
            self._check_prompt(messages, name)
            return [*as_context(messages[:-1]), messages[-1]]
        if is_empty(self._value("question")):
            cure = "dataset.columns.question=<the column of the prompt>"
            raise Refused(f"{name} is an answer alone, and the row has no prompt", cure=cure)
        before = as_context([*self._history(), *self._question()])
        if messages is not None:
            return [*before, *as_context(messages[:-1]), *messages[-1:]]
        return [*before, self._turns.answer(given, None, name)]

    def _check_prompt(self, chat: list[Message], name: str) -> None:
        """A prompt in a column of its own, beside whole chats, is the last that the user says in them.

        Raises:
            Refused: it is not.
        """
        prompt, asked = self._value("question"), [message["content"] for message in chat if message["role"] == "user"]
        if isinstance(prompt, str) and prompt.strip() and prompt.strip() not in (text.strip() for text in asked):
            column = self._columns["question"]
            cure = "dataset.columns.question=null takes the chats as they are"
            raise Refused(f"the chat in {name} does not ask what the column {column} does", cure=cure)

    def _question(self) -> list[Message]:
        given, name, more = self._column("question"), self._columns["question"], self._value("input")
        if isinstance(given, list | dict):
            messages = self._turns.messages(given, name)
        else:
            messages = [{"role": "user", "content": self._texts.text(given, name)}]
        if isinstance(more, str) and more.strip().casefold() == NO_INPUT:
            self._remarks.add(f"{NO_INPUT} was read as an empty input")
        elif not is_empty(more) and not (isinstance(more, str) and more.isspace()):
            text = self._texts.text(more, self._columns["input"])
            if not messages or messages[-1]["role"] != "user":
                raise Refused("no question stands before the input")
            messages[-1]["content"] += f"\n\n{text}"
        return messages

    def _completion(self) -> list[Message]:
        """An answer that is a list of messages; a column of its own may hold the thinking of its only answer."""
        messages = self._turns.messages(self._column("answer"), self._columns["answer"])
        thinking = self._value("thinking")
        if not is_empty(thinking) and not (isinstance(thinking, str) and thinking.isspace()):
            answers = [message for message in messages if message["role"] == "assistant"]
            if len(answers) != 1 or "thinking" in answers[0]:
                column = self._columns["thinking"]
                raise Refused(f"the column {column} has thinking, and so have messages", f"{len(answers)} answers")
            answers[0]["thinking"] = self._texts.text(thinking, self._columns["thinking"])
        return messages

    def _history(self) -> list[Message]:
        """Earlier turns: pairs of a question and its answer, or messages."""
        given, name = self._value("history"), self._columns.get("history", "")
        if is_empty(given):
            return []
        if not isinstance(given, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given):
            return self._turns.messages(given, name)
        messages: list[Message] = []
        for i, (question, answer) in enumerate(given):
            messages.append({"role": "user", "content": self._texts.text(question, f"{name}[{i}]")})
            messages.append(self._turns.answer(answer, None, f"{name}[{i}]"))
        return messages

    def _turns_of(self, key: str) -> list[Message]:
        return self._turns.messages(self._column(key), self._columns[key])

    def _system(self, own: list[str]) -> tuple[str, list[dict[str, Any]]]:
        """The system message, and the tools; both may be empty."""
        given = self._value("tools")
        for i, text in enumerate(own):
            own[i], found = hermes_tools(text)
            if found is not None:
                given = found if is_empty(given) else given
                self._remarks.add(OWN_TOOLS)
        parts = [part for part in (self._setting("persona"), *own) if part]
        said = [language for part in parts for language in _LANGUAGE.findall(part)]
        language = self._setting("reasoning_language")
        if said:
            language = self._own_language(said)
            parts = [_LANGUAGE.sub("", part).rstrip("\n") if _LANGUAGE.search(part) else part for part in parts]
        parts = [self._without_effort(part) for part in parts]
        return join_system(language, *parts), definitions(given, self._texts)

    def _without_effort(self, part: str) -> str:
        """A paragraph of the system message without Harmony's line for the reasoning effort, which then holds.

        Raises:
            Refused: another line, or a column of the row, says otherwise.
        """
        for effort in map(str.lower, _EFFORT.findall(part)):
            if self._own_effort not in (None, effort):
                raise Refused("the row asks for two reasoning efforts", f"{self._own_effort} and {effort}")
            self._own_effort = effort
            self._remarks.add(f"{OWN_EFFORT}={self._dataset.reasoning_effort}")
        return _EFFORT.sub("", part).strip("\n") if self._own_effort and _EFFORT.search(part) else part

    def _own_language(self, said: list[str]) -> str:
        """The language that the row's system message asks for itself.

        Raises:
            Refused: it asks for two, or a column of the row for another.
        """
        named = self._value("reasoning_language")
        wanted = list(dict.fromkeys([*said, named] if isinstance(named, str) and named else said))
        if len(wanted) > 1:
            raise Refused("the row asks for two reasoning languages", " and ".join(wanted))
        if said[0] != self._dataset.reasoning_language and not named:
            self._remarks.add(f"{OWN_LANGUAGE}={self._dataset.reasoning_language}")
        return said[0]

    def _setting(self, name: str) -> str | None:
        """A setting, or what a column says for this row."""
        value = self._value(name)
        if is_empty(value) or (isinstance(value, str) and value.isspace()):
            return getattr(self._dataset, name)
        return self._texts.text(value, self._columns[name])

    def _effort_of_column(self) -> str | None:
        given = self._value("reasoning_effort")
        return given.strip().lower() if isinstance(given, str) and given.strip() else None

    def _effort(self) -> str:
        effort = self._own_effort or self._setting("reasoning_effort")
        effort = effort and effort.strip().lower()
        if effort not in EFFORTS:
            raise Refused("the reasoning effort is none of low, medium, high", repr(effort))
        return effort

    def _count_columns(self) -> None:
        self._account.columns.update(self._values)
        left = [key for key, value in self._values.items() if key not in self._used and not is_empty(value)]
        self._account.unused.update(key for key in left if key != self._label)
        if self._label in left and not self._is_good(self._values[self._label]):
            self._account.unused[self._label] += 1

    def _is_good(self, label: Any) -> bool:
        """Whether the row's answer is marked as a good one; False too where the column holds something else.

        Raises:
            Refused: it is marked as a bad one, or the column must mark it and does not.
        """
        mark = _MARKS.get(str(label).strip().casefold())
        if self._is_label or isinstance(label, bool) or (isinstance(label, str) and not label.strip().isdigit()):
            if mark is False:
                cure = "dataset.columns.label=null trains such rows as all others"
                raise Refused(f"{self._label} is false, which marks the answer as a bad one", cure=cure)
            if mark is None and self._is_label:
                raise Refused(f"{self._label} is neither true nor false", repr(label)[:80])
            return bool(mark)
        return False

    def _tags(self) -> dict[str, str]:
        used = self._taken_apart
        tags = {key: value for key, value in self._values.items() if key not in used and isinstance(value, str)}
        for key, value in tags.items():
            if _HALF.search(key) or _HALF.search(value):
                raise Refused("a column holds half a surrogate pair, which is no text", repr(key))
        return tags

    def _value(self, key: str) -> Any:
        """What a column holds that a row may lack."""
        return self._values.get(self._columns[key]) if key in self._columns else None

    def _column(self, key: str) -> Any:
        column = self._columns[key]
        if column not in self._values:
            raise Refused(f"no column {column!r}")
        return self._values[column]


def _split_results(messages: list[Message]) -> list[Message]:
    """Several results that Hermes writes into one message, one by one."""
    split: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            split += (message | {"content": content} for content in hermes_results(message["content"]))
        else:
            split.append(message)
    return split
