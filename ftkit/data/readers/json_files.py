"""Rows of JSON: one object a line, or values that stand one after another, in an array, or wrapped in one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import IO, Any

from ftkit.data.readers.rows import Reading, not_an_object, repeated, twice
from ftkit.data.readers.text import LONGEST, TOO_LONG, UNDECODABLE, Unreadable, beginning, byte_lines, decoded, opened

HEAD = 1 << 20
"""Bytes of a file's beginning that its layout is told by."""
BLOCK = 1 << 20
LONGEST_DOCUMENT = 256 << 20
"""Characters of one JSON value that holds all rows; an array's elements are read one by one."""
BLANK = re.compile(r"[ \t\r\n\x1e\ufeff]*")


def json_rows(reading: Reading, encoding: str) -> Iterator[tuple[int, Any]]:
    """Number, and JSON bytes, an object or a refusal, of each row: of lines their number, else the row's position.

    Raises:
        Unreadable: it is neither lines nor values one after another.
    """
    with opened(reading.path) as stream:
        start = beginning(stream, HEAD)
    head = start.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    one_a_line = _one_a_line(head, whole=len(start) < HEAD)
    with opened(reading.path) as stream:
        if not one_a_line:
            yield from _Values(decoded(stream, encoding), reading).rows()
        elif encoding == "utf-8" and (b"\n" in start or b"\r" not in start):
            yield from _utf8_lines(stream)
        else:
            yield from _decoded_lines(stream, encoding)


def _utf8_lines(stream: BufferedReader) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(byte_lines(stream), start=1):
        if line is None:
            yield number, (TOO_LONG, "")
        elif not line.isspace():
            yield number, line


def _decoded_lines(stream: BufferedReader, encoding: str) -> Iterator[tuple[int, Any]]:
    """Lines of another encoding, or that end with a carriage return alone."""
    text = decoded(stream, encoding)
    text.reconfigure(newline=None)
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = text.readline(LONGEST)
            yield number, (TOO_LONG, "")
        elif UNDECODABLE in line:
            yield number, (f"not {encoding}", f"character {line.index(UNDECODABLE) + 1} of the line")
        elif not line.isspace():
            yield number, line.encode("utf-8", "surrogatepass")


def _one_a_line(head: str, *, whole: bool) -> bool:
    """Whether rows are lines. A file whose first line is broken is one of lines when any later line is an object.

    Args:
        head: the beginning of the text.
        whole: whether that is all of it.
    """
    lines = [line for line in re.split(r"[\r\n]+", head) if line.strip("\ufeff \t")]
    if not whole:
        lines = lines[:-1] or lines
    first = lines[0].strip("\ufeff \t") if lines else ""
    if _is_object(first):
        return len(lines) > 1 or not whole
    if first[:1] not in ("{", "["):
        return True
    return not _begins_with_values(head, whole=whole) and (first[:1] == "{" or any(map(_is_object, lines[1:50])))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _begins_with_values(head: str, *, whole: bool) -> bool:
    """Whether the text begins with a whole value, or one that goes on beyond the head."""
    at = _skip(head, 0)
    if head[at : at + 1] == "[":
        at = _skip(head, at + 1)
        if head[at : at + 1] == "]":
            return True
    try:
        json.JSONDecoder().raw_decode(head, at)
    except json.JSONDecodeError as error:
        return not whole and _is_cut(error, head)
    except RecursionError:
        return False
    return True


def _skip(text: str, at: int) -> int:
    found = BLANK.match(text, at)
    return found.end() if found else at


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether more text could mend the error."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 16


class _Values:
    """JSON values of a text, of which only those not yet handed on are held."""

    def __init__(self, text: IO[str], reading: Reading):
        self._text = text
        self._reading = reading
        self._buffer = ""
        self._at = 0
        self._lines_before = 0
        self._over = False
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def rows(self) -> Iterator[tuple[int, Any]]:
        number = 0
        while mark := self._peek():
            if mark == "[":
                rows = self._elements()
            elif mark == "," and number:  # between values that stand end to end
                self._at += 1
                continue
            else:
                value = self._value(LONGEST_DOCUMENT)
                rows = self._unwrapped(value) if not number and not self._peek() else [value]
            for row in rows:
                number += 1
                yield number, row if isinstance(row, dict | tuple) else not_an_object(row)

    def _elements(self) -> Iterator[Any]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._value(LONGEST)
            mark = self._peek()
            self._at += 1
            if mark == "]":
                return
            if mark != ",":
                raise self._error("',' or ']' is missing" if mark else "the array is never closed")

    def _value(self, limit: int) -> Any:
        """The next value; a refusal for one with a key twice or with bytes that are no text."""
        self._peek()
        while True:
            self._twice.clear()
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or not self._more(end - self._at):
                    break
            except json.JSONDecodeError as error:
                if not _is_cut(error, self._buffer) or not self._more(len(self._buffer) - self._at):
                    raise self._error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._error("nested too deeply") from error
            if len(self._buffer) - self._at > limit:
                raise self._error(f"a value is longer than {limit >> 20} MiB")
        undecodable = UNDECODABLE in self._buffer[self._at : end]
        self._at = end
        if undecodable:
            return "not UTF-8", "a text of the object"
        return twice(self._twice[0]) if self._twice else value

    def _peek(self) -> str:
        """The next character that is not blank; empty at the end of the text."""
        while True:
            self._at = _skip(self._buffer, self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(0):
                return ""

    def _more(self, held: int) -> bool:
        """Read on: as much again as is held, so that a long value is not looked at too often."""
        if self._over:
            return False
        block = self._text.read(max(BLOCK, held))
        if not block:
            self._over = True
            return False
        self._lines_before += self._buffer.count("\n", 0, self._at)
        self._buffer = self._buffer[self._at :] + block
        self._at = 0
        return True

    def _error(self, what: str, at: int | None = None) -> Unreadable:
        line = self._lines_before + self._buffer.count("\n", 0, self._at if at is None else at) + 1
        return Unreadable(f"not JSON: line {line}: {what[:1].lower()}{what[1:]}", "mend the file at that line")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            self._twice.append(repeated(pairs))
        return values

    def _unwrapped(self, value: Any) -> Sequence[Any]:
        """The rows of a file that is one object: itself, those in its one list, or one of each column's values."""
        if not isinstance(value, dict):
            return [value]
        here = [name for name in self._reading.columns if name in value]
        if here:
            return self._by_columns(value) if all(_holds_a_column(value[name]) for name in here) else [value]
        lists = [
            key for key, rows in value.items() if isinstance(rows, list) and any(isinstance(r, dict) for r in rows)
        ]
        if not lists:
            return [value]
        if len(lists) > 1:
            raise Unreadable(
                f"the file is one JSON object with lists under {', '.join(lists)}",
                "a file of its own for each, one object a line: train.jsonl, test.jsonl",
            )
        if others := [key for key in value if key != lists[0]]:
            self._reading.say(f"{', '.join(others)} (beside the rows under {lists[0]})")
        return value[lists[0]]

    def _by_columns(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """pandas' column-wise layout: lists, or objects from row names to values."""
        columns = {key: list(v.values()) if isinstance(v, dict) else v for key, v in value.items()}
        lengths = {key: len(v) if isinstance(v, list) else 1 for key, v in columns.items()}
        if len(set(lengths.values())) > 1:
            different = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
            raise Unreadable(f"the file is one JSON object by columns, which are not equally long: {different}")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _holds_a_column(value: Any) -> bool:
    """Whether a value is a whole column rather than a text or a chat."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and bool(value) and all(isinstance(v, str | list) for v in value)
