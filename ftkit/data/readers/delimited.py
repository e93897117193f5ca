"""Rows of delimited text: comma, semicolon or tab, with or without Excel's quotation marks, below a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any, Literal

from ftkit.data.readers.rows import Reading
from ftkit.data.readers.text import LONGEST, TooLong, Unreadable, beginning, decoded, opened, text_lines

HEAD = 1 << 20
"""Bytes of a file's beginning that its delimiter and its use of quotation marks are told by."""
TITLES = 20
"""Records among which the header is looked for; those above it are refused."""
DELIMITERS = ",\t;|"
SEP = re.compile(r'\ufeff?"?sep=(.)"?\r?\n?', re.IGNORECASE)
"""Excel's first line that names the delimiter."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Record:
    """Consecutive lines that the csv module takes for one record.

    Attributes:
        first: number of its first line.
        last: number of its last.
        fields: None when it cannot be taken apart.
        error: why not.
        text: its lines.
    """

    first: int
    last: int
    fields: list[str] | None
    error: str = ""
    text: str = ""


def delimited_rows(reading: Reading, encoding: str, *, tabs: bool) -> Iterator[tuple[int, Any]]:
    """Line number, and the row's values or a refusal; of a record that cannot be read each line counts.

    Raises:
        Unreadable: there is no header, or one that names a column twice.
    """
    with opened(reading.path) as stream:
        head = _text_of(beginning(stream, HEAD), encoding)
    delimiter = _delimiter(head, reading.columns, "\t" if tabs else ",")
    quotes = _use_of_quotes(head) if delimiter == "\t" else "enclose"
    with opened(reading.path) as stream:
        records = _records(decoded(stream, encoding), delimiter, literal=quotes != "enclose")
        above, header, below = _header(records, reading)
        for record in above:
            yield from _refused(record, "stands above the header")
        yield from _rows(below, header, unclear=quotes == "unclear")


def _rows(records: Iterator[Record], header: list[str], *, unclear: bool) -> Iterator[tuple[int, Any]]:
    names = [name or f"unnamed {i}" for i, name in enumerate(header, start=1)]
    unnamed = {name for name, given in zip(names, header, strict=True) if not given}
    distrust = False
    for record in records:
        fields = record.fields
        if fields is None:
            reason = "a quotation mark that is not closed rightly"
            yield from _refused(record, record.error if "longer than" in record.error else reason)
            distrust = True
            continue
        if not any(fields):
            continue
        if distrust and record.text.count('"') % 2:
            yield from _refused(record, "not CSV, after a quotation mark that is not closed rightly")
            continue
        distrust = distrust and '"' not in record.text
        if len(fields) > len(names) and not any(fields[len(names) :]):
            fields = fields[: len(names)]
        if len(fields) != len(names):
            yield from _refused(
                record, "fields that do not fit the header", f"{len(fields)} fields, {len(names)} columns"
            )
        elif unclear and any(len(f) > 1 and f[0] == f[-1] == '"' for f in fields):
            yield from _refused(record, "a cell begins and ends with a quotation mark, which may be Excel's or its own")
        else:
            values = dict(zip(names, fields, strict=True))
            yield record.first, {k: v for k, v in values.items() if v or k not in unnamed} if unnamed else values


def _refused(record: Record, reason: str, detail: str = "") -> Iterator[tuple[int, Any]]:
    """A refusal for each line of a record."""
    span = f"lines {record.first}-{record.last}" if record.last > record.first else ""
    refusal = reason, ", ".join(part for part in (span, detail or record.error) if part and part != reason)
    for line in range(record.first, record.last + 1):
        yield line, refusal


def _records(text: IO[str], delimiter: str, *, literal: bool) -> Iterator[Record]:
    csv.field_size_limit(LONGEST)
    lines = _Kept(text_lines(text))
    quoting = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    if SEP.fullmatch(lines.peek()):
        next(lines)
    while True:
        before = lines.number
        lines.kept.clear()
        try:
            fields, error = next(reader), ""
        except StopIteration:
            return
        except (csv.Error, TooLong) as failure:
            fields, error = None, str(failure)
        yield Record(before + 1, max(lines.number, before + 1), fields, error, "".join(lines.kept[:64]))


class _Kept(Iterator[str]):
    """Lines with their numbers; the last ones are kept to look at."""

    def __init__(self, lines: Iterator[str]):
        self._lines = lines
        self._next: list[str] = []
        self.number = 0
        self.kept: list[str] = []

    def peek(self) -> str:
        """The first line, which is still to come."""
        try:
            self._next = [next(self._lines)]
        except (StopIteration, TooLong):
            return ""
        return self._next[0]

    def __next__(self) -> str:
        self.number += 1
        try:
            line = self._next.pop() if self._next else next(self._lines)
        except StopIteration:
            self.number -= 1
            raise
        if len(self.kept) < 64:
            self.kept.append(line)
        return line


def _header(records: Iterator[Record], reading: Reading) -> tuple[list[Record], list[str], Iterator[Record]]:
    """The records above the header, the header, and those below it; the first record where none has a wanted column."""
    if reading.header:
        return [], list(reading.header), records
    first = list(islice(records, TITLES))
    at = next((i for i, record in enumerate(first) if _names(record) & set(reading.columns)), None)
    if at is None:
        at = next((i for i, record in enumerate(first) if record.fields is None or any(record.fields)), 0)
    if not first or first[at].fields is None:
        raise Unreadable(f"not CSV: {first[at].error}" if first else "the file has no line")
    header = [name.strip() for name in first[at].fields or ()]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise Unreadable(f"the header has the column {twice[0]!r} twice")
    above = [record for record in first[:at] if record.fields is None or any(record.fields)]
    return above, header, chain(first[at + 1 :], records)


def _text_of(head: bytes, encoding: str) -> str:
    """The beginning as text; its last character may be cut."""
    return head.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace").removesuffix("\ufffd")


def _names(record: Record) -> set[str]:
    return {name.strip() for name in record.fields or ()}


def _delimiter(head: str, columns: Sequence[str], default: str) -> str:
    """The one that the first line names, or that gives the most of the wanted columns."""
    if named := SEP.match(head):
        return named.group(1)
    lines = head.splitlines(keepends=True)[: 4 * TITLES]

    def found(delimiter: str) -> int:
        try:
            rows = islice(csv.reader(lines, delimiter=delimiter), TITLES)
            return max((len({name.strip() for name in row} & set(columns)) for row in rows), default=0)
        except csv.Error:
            return 0

    return max((default, *DELIMITERS), key=found)


def _use_of_quotes(head: str) -> Literal["enclose", "text", "unclear"]:
    """What quotation marks mean in tab-separated text: Excel encloses cells by them, others write them as text.

    Excel encloses a cell that holds a comma, a tab, a line end or a quotation mark, and no other; some programs enclose
    every cell.
    """
    enclosed = needed = bare = 0
    at = 0
    while at < len(head):
        whole = QUOTED.match(head, at)
        if whole and head[whole.end() : whole.end() + 1] in ("", "\t", "\r", "\n"):
            enclosed += 1
            needed += bool(re.search(r'[,\t\r\n]|""', whole.group()[1:-1]))
            end = whole.end()
        else:
            end = _end_of_cell(head, at)
            cell = head[at:end]
            bare += '"' in cell and end < len(head)  # the last cell may be cut
        at = end + 1
    header = head[: _end_of_cell(head, 0, "\r\n")].split("\t")
    if needed > bare and (needed == enclosed or all(map(QUOTED.fullmatch, header))):
        return "enclose"
    return "text" if bare and not needed else "unclear"


def _end_of_cell(text: str, at: int, ends: str = "\t\r\n") -> int:
    found = re.compile(f"[{ends}]").search(text, at)
    return found.start() if found else len(text)
