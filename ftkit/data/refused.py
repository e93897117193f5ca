"""Why a row is refused, what is said of a row that is kept, and the checks that every text goes through."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from ftkit.chat.messages import SPECIAL_TOKEN
from ftkit.config.dataset import Dataset

_UNUSUAL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_ISO_2022 = re.compile("\x1b\\$[@B(]|\x1b\\([BIJ]")

LOST = "\ufffd"
LINE_ENDS = "line breaks \\r\\n or \\r were written as \\n"


class Refused(ValueError):
    """A row that cannot become a conversation.

    Args:
        reason: the same for all rows with this fault; they are counted by it.
        detail: what differs from row to row.
        cure: the setting that takes such rows, or what to mend in them.
    """

    def __init__(self, reason: str, detail: str = "", cure: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.cure = cure


@dataclass
class Account:
    """What rows carry beyond what is trained, so that nothing is left out in silence.

    Attributes:
        columns: all that any row has.
        keys: those of messages.
        unused: rows in which a column that is not used holds something.
        unused_keys: messages, their parts, and tools in which a key that is not used holds something.
        remarks: rows of which something is to be said, by what.
    """

    columns: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    unused: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Account) -> None:
        self.columns |= other.columns
        self.keys |= other.keys
        self.unused += other.unused
        self.unused_keys += other.unused_keys
        self.remarks += other.remarks


class Texts:
    """Checks texts of one row. None is altered but for its line ends.

    Args:
        dataset: its settings.
        account: takes down keys that are not used.
        remarks: what is to be said of the row.
    """

    def __init__(self, dataset: Dataset, account: Account, remarks: set[str]):
        self._account = account
        self._refuses_special = dataset.special_tokens == "refuse"
        self._remarks = remarks

    def text(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        """A text that is there.

        Args:
            name: of the column or message, with its place: ``messages[2]``.

        Raises:
            Refused: it is no text, or holds what would not be trained as it is written.
        """
        if not isinstance(value, str):
            raise refused(name, f"is {kind_of(value)}, not text")
        if not may_be_empty and (not value or value.isspace()):
            raise refused(name, "is empty")
        if _UNUSUAL.search(value):
            self._check_characters(value, name)
        if self._refuses_special and (found := SPECIAL_TOKEN.search(value)):
            raise refused(
                name,
                f"holds the special token {found.group()}, which would end or forge a message",
                "dataset.special_tokens=neutralise keeps it as plain characters",
            )
        if "\r" in value:
            self._remarks.add(LINE_ENDS)
            return unix_lines(value)
        return value

    def remark(self, what: str) -> None:
        """Say something of the row."""
        self._remarks.add(what)

    def leave_out(self, given: dict[str, Any], used: Container[str], of: str) -> None:
        """Take down the keys of an object that hold something and are not used.

        Args:
            of: what the object is, for the user.
        """
        for key, value in given.items():
            if key not in used and not is_empty(value) and value is not False:
                self._account.unused_keys[f"{of}.{key}"] += 1

    def _check_characters(self, value: str, name: str) -> None:
        if _NO_TEXT.search(value):
            raise refused(name, "holds characters that are no text (NUL, half a surrogate pair, or not UTF-8)")
        if _ISO_2022.search(value):
            raise refused(name, "holds the escape sequences of ISO-2022-JP", "save the file as UTF-8")
        if LOST in value:
            self._remarks.add("characters were lost before, U+FFFD stands in their place")
        if len(_UNUSUAL.findall(value)) > value.count(LOST):
            self._remarks.add("control characters stand in the text")


def unix_lines(text: str) -> str:
    """A text whose lines end with ``\\n``, whichever program wrote it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def refused(name: str, what: str, cure: str = "") -> Refused:
    """Of a message in a chat, its place is a detail."""
    general = re.sub(r"\[\d+\]", "", name)
    return Refused(f"{general} {what}", "" if general == name else f"in {name.split()[-1]}", cure)


def is_empty(value: Any) -> bool:
    """Whether there is nothing; pandas writes NaN there."""
    return (
        value is None
        or (isinstance(value, float) and isnan(value))
        or (isinstance(value, str | list | dict | tuple) and not value)
    )


def kind_of(value: Any) -> str:
    return {
        type(None): "null",
        list: "a list",
        dict: "an object",
        int: "a number",
        float: "a number",
        bool: "a truth value",
        str: "text",
    }.get(type(value), type(value).__name__)
