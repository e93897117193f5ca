"""Raw rows, and chunks of them that a worker takes apart."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftkit.chat.template_limits import SYSTEM_LEFT_OUT

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20

Refusal = tuple[str, str]
"""Reason and particulars of a row that cannot be read."""

CURES = (
    ("not JSON", "one JSON object a line (.jsonl), or an array of objects (.json)"),
    ("a key occurs twice", "each key once in an object"),
    ("of the table is not UTF-8", "write its column as UTF-8 text"),
    ("not UTF-8", "dataset.encoding=cp932, or the encoding that the file was saved in"),
    ("are no text", "dataset.encoding=cp932, or the encoding that the file was saved in"),
    ("quotation mark", "close it at that line, or save the file again as .xlsx or .csv"),
    ("fit the header", "as many fields in each row as the header has names"),
    ("longer than", "split the row"),
    ("takes no system message", SYSTEM_LEFT_OUT),
)
"""What to do about reasons that the readers and the chat's format give, by words that they hold."""


def cure_of(reason: str) -> str:
    """What the user can do about rows that were refused for a reason; empty where nothing is known."""
    return next((cure for words, cure in CURES if words in reason), "")


@dataclass(frozen=True)
class RawRow:
    """One row as it was read.

    Attributes:
        number: of the row in the whole data set, from 1: its line in a text file, its position in a table; a second
            file's go on where the first one's end.
        where: file and line, ``part-2.jsonl:17``.
        values: the row's columns; None when it could not be read.
        reason: why it could not be read; empty when it could.
        detail: particulars of the reason, which differ from row to row.
    """

    number: int
    where: str
    values: dict[str, Any] | None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Attributes:
        path: the file.
        columns: names of the columns that hold the rows' texts; they tell a header or a row from what is none.
        header: names of the columns of delimited text that does not begin with them.
        encoding: of text without a byte order mark; None has it recognised.
        say: takes what is left out of the file, in one line.
    """

    path: Path
    columns: Sequence[str]
    header: Sequence[str] | None
    encoding: str | None
    say: Callable[[str], None]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file, not yet taken apart.

    Attributes:
        name: of the file, or of the data set on the hub.
        before: rows in the files, and sources, before it.
        lines: numbers of the rows in the file, from 1.
        content: an Arrow table, or for each row JSON bytes, a dict, or a refusal.
        validation: whether the rows are the user's own held-out ones.
        source: name of the source in ``dataset.mix``; empty for a single one.
    """

    name: str
    before: int
    lines: Sequence[int]
    content: Sequence[Any] | pa.Table = field(repr=False)
    validation: bool = False
    source: str = ""

    def head(self, rows: int) -> Chunk:
        return replace(self, lines=self.lines[:rows], content=self.content[:rows])

    def rows(self) -> Iterator[RawRow]:
        """Take the rows apart; never raises."""
        content = self.content
        values = map(_parsed, _table_rows(content) if isinstance(content, pa.Table) else content)
        for line, value in zip(self.lines, values, strict=True):
            number, where = self.before + line, f"{self.name}:{line}"
            if isinstance(value, dict):
                yield RawRow(number, where, value)
            else:
                reason, detail = value
                yield RawRow(number, where, None, reason, detail)


def _table_rows(table: pa.Table) -> Iterator[Any]:
    try:
        yield from table.to_pylist()
    except (UnicodeDecodeError, ValueError, MemoryError):
        for i in range(table.num_rows):
            yield _table_row(table.slice(i, 1))


def _table_row(table: pa.Table) -> dict[str, Any] | Refusal:
    try:
        return table.to_pylist()[0]
    except UnicodeDecodeError as error:
        return "a text of the table is not UTF-8", f"its byte {error.start}"
    except MemoryError:
        return "the row needs more memory than there is", ""
    except ValueError as error:  # a date that Python has not, for instance
        return "a value that cannot be read", str(error)


def _parsed(content: Any) -> dict[str, Any] | Refusal:
    """A row's values, or the refusal."""
    if not isinstance(content, bytes):
        return content
    try:
        values = _decode(content.removeprefix(BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        return "not UTF-8", f"byte {error.start} of the line"
    except _Twice as error:
        return twice(error.args[0])
    except (ValueError, RecursionError) as error:
        return "not JSON", str(error)
    except MemoryError:
        return "the row needs more memory than there is", ""
    return values if isinstance(values, dict) else not_an_object(values)


class _Twice(Exception):
    """A JSON object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Twice(repeated(pairs))
    return values


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def repeated(pairs: list[tuple[str, Any]]) -> str:
    """The first key that occurs again."""
    names = [name for name, _ in pairs]
    return next(name for name in names if names.count(name) > 1)


def twice(key: str) -> Refusal:
    return "a key occurs twice", repr(key)


def not_an_object(value: Any) -> Refusal:
    return "not a JSON object", type(value).__name__


def gathered(rows: Iterator[tuple[int, Any]], damage: tuple[type[BaseException], ...]) -> Iterator[tuple[list, list]]:
    """Line numbers and content of some rows at a time; when reading fails, those read so far come first.

    Args:
        rows: line number, and JSON bytes, a dict or a refusal.
        damage: what reading may raise.
    """
    lines: list[int] = []
    content: list[Any] = []
    size = 0
    failure: BaseException | None = None
    while True:
        try:
            line, value = next(rows)
        except StopIteration:
            break
        except damage as error:
            failure = error
            break
        lines.append(line)
        content.append(value)
        size += _size(value)
        if len(lines) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield lines, content
            lines, content, size = [], [], 0
    if lines:
        yield lines, content
    if failure:
        raise failure


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(len(v) for v in value.values() if isinstance(v, str)) if isinstance(value, dict) else 0
