"""Raw rows from files, from data that ships with ftkit, or from the hub, in chunks that a worker takes apart.

What cannot be read is a row too, with its reason: a line, the rest of a file that is cut off, or a file among others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from ftkit.config.data_files import data_files
from ftkit.config.groups import Dataset
from ftkit.errors import StageError

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20
DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading raises when a file is cut off, is not what its name says, or cannot be opened."""


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


class Unreadable(Exception):
    """A file of which nothing can be read; carries the reason."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file, not yet taken apart.

    Attributes:
        name: of the file, or of the data set on the hub.
        before: rows in the files before it.
        lines: numbers of the rows in the file, from 1.
        content: an Arrow table, or for each row JSON bytes, a dict, or reason and detail of what is wrong with it.
    """

    name: str
    before: int
    lines: Sequence[int]
    content: Sequence[Any] | pa.Table = field(repr=False)

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


def read_chunks(dataset: Dataset, header: Sequence[str] | None = None) -> Iterator[Chunk]:
    """Read ``dataset.path``, at most ``dataset.max_rows`` rows of it.

    Args:
        dataset: where the rows are, and which columns they have.
        header: names of the columns of .csv and .tsv files that do not begin with them.

    Raises:
        StageError: the source is missing, empty, unreadable, or lacks the configured columns.
    """
    chunks = _checked(_source(dataset, header), dataset)
    left = dataset.max_rows
    for chunk in chunks:
        if left is not None and len(chunk.lines) >= left:
            yield chunk.head(left)
            return
        left = left and left - len(chunk.lines)
        yield chunk


def _source(dataset: Dataset, header: Sequence[str] | None) -> Iterator[Chunk]:
    files = data_files(dataset.path)
    if files is None:
        return _hub_chunks(dataset)
    if not files:
        raise StageError("there is nothing to read", where=dataset.path, cure="dataset.path=<your rows>")
    return _file_chunks(files, header)


def _file_chunks(files: list[Path], header: Sequence[str] | None) -> Iterator[Chunk]:
    folder = Path(*_common(files))
    before = 0
    for path in files:
        name, last = path.relative_to(folder).as_posix(), 0
        try:
            for lines, content in _batches(path, header):
                yield Chunk(name, before, lines, content)
                last = lines[-1]
        except (Unreadable, *DAMAGE) as error:
            reason = str(error) if isinstance(error, Unreadable) else f"the file cannot be read: {_first_line(error)}"
            if last:
                reason = f"the file is cut off or damaged: {_first_line(error)}"
            elif len(files) == 1:
                raise StageError(reason, where=str(path), cure="dataset.path=<your rows>") from error
            last += 1
            yield Chunk(name, before, [last], [(reason, "")])
        before += last


def _common(files: list[Path]) -> tuple[str, ...]:
    """Parts of the folder that all files lie in."""
    parents = [path.parent.parts for path in files]
    shared = 0
    for names in zip(*parents, strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    return parents[0][:shared]


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _batches(path: Path, header: Sequence[str] | None) -> Iterator[tuple[Sequence[int], Any]]:
    """Line numbers and content of some rows at a time."""
    if path.suffix == ".parquet":
        yield from _parquet_batches(path)
        return
    with path.open("rb") as plain:
        stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=plain))) if path.suffix == ".gz" else plain
        start = stream.peek(64)
        if not start:
            raise Unreadable("the file is empty")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Unreadable("the file is UTF-16, not UTF-8")
        name = path.name.removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            rows = _csv_rows(stream, header, tabs=name.endswith(".tsv"))
        elif name.endswith(".json") and start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            rows = enumerate(_json_array(stream), start=1)
        else:
            rows = ((number, line) for number, line in enumerate(stream, start=1) if not line.isspace())
        yield from _gathered(rows)


def _gathered(rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[list[int], list[Any]]]:
    """Rows in chunks; when reading fails, those read so far come first."""
    lines: list[int] = []
    content: list[Any] = []
    size = 0
    failure: BaseException | None = None
    while True:
        try:
            line, value = next(rows)
        except StopIteration:
            break
        except (Unreadable, *DAMAGE) as error:
            failure = error
            break
        lines.append(line)
        content.append(value)
        size += len(value) if isinstance(value, bytes) else 0
        if len(lines) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield lines, content
            lines, content, size = [], [], 0
    if lines:
        yield lines, content
    if failure:
        raise failure


def _json_array(stream: IO[bytes]) -> Iterator[Any]:
    try:
        rows = json.loads(stream.read().decode("utf-8-sig"), object_pairs_hook=dict)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    yield from (row if isinstance(row, dict) else _not_an_object(row) for row in rows)


def _csv_rows(stream: IO[bytes], header: Sequence[str] | None, *, tabs: bool) -> Iterator[tuple[int, Any]]:
    """Rows of a .csv, or of a .tsv, where a quotation mark is one like any other character."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, csv.excel_tab, quoting=csv.QUOTE_NONE) if tabs else csv.reader(text, strict=True)
    try:
        header = header or next(reader)
    except csv.Error as error:
        raise Unreadable(f"not CSV: {error}") from error
    if twice := [name for name in header if list(header).count(name) > 1]:
        raise Unreadable(f"the header has the column {twice[0]!r} twice")
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, ("not CSV", str(error))
            continue
        if len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True))
        elif fields:
            yield line, ("fields that do not fit the header", f"{len(fields)} fields, {len(header)} columns")


def _parquet_batches(path: Path) -> Iterator[tuple[Sequence[int], pa.Table]]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except DAMAGE as error:
        raise Unreadable(f"not a readable parquet file: {_first_line(error)}") from error
    yield from _numbered(pa.Table.from_batches([b]) for b in file.iter_batches(CHUNK_ROWS, use_threads=False))


def _numbered(tables: Iterator[pa.Table]) -> Iterator[tuple[Sequence[int], pa.Table]]:
    done = 0
    for table in tables:
        if table.num_rows:
            yield range(done + 1, done + table.num_rows + 1), table
            done += table.num_rows


def _table_rows(table: pa.Table) -> Iterator[Any]:
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:
        for i in range(table.num_rows):
            try:
                yield from table.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield "not UTF-8", f"byte {error.start} of a text"


def _parsed(content: Any) -> dict[str, Any] | tuple[str, str]:
    """A row's values, or the reason and its particulars."""
    if not isinstance(content, bytes):
        return content
    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return "not UTF-8", f"byte {error.start} of the line"
    except _Twice as error:
        return "a key occurs twice", repr(error.args[0])
    except (ValueError, RecursionError) as error:
        return "not JSON", str(error)
    return values if isinstance(values, dict) else _not_an_object(values)


class _Twice(Exception):
    """A JSON object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return values


def _not_an_object(value: Any) -> tuple[str, str]:
    return "not a JSON object", type(value).__name__


def _hub_chunks(dataset: Dataset) -> Iterator[Chunk]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset.path, split=dataset.split, revision=dataset.revision)
    except Exception as error:  # the hub's client raises many unrelated types, requests' and its own among them
        raise StageError(
            f"the data set cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            where=f"{dataset.path}, split {dataset.split}, on the hub",
            cure="check name, network and HF_TOKEN, or take a local copy: dataset=jsonl dataset.path=rows.jsonl",
        ) from error
    tables = cast(Iterator[pa.Table], rows.with_format("arrow").iter(CHUNK_ROWS))
    for lines, table in _numbered(tables):
        yield Chunk(dataset.path, 0, lines, table)


def _checked(chunks: Iterator[Chunk], dataset: Dataset) -> Iterator[Chunk]:
    """Stop at the first readable row if it has none of the columns; later rows that lack one are refused."""
    columns = dataset.columns
    wanted = [name for name in (columns.question, columns.answer, columns.messages) if name is not None]
    unread: list[Chunk] = []
    for chunk in chunks:
        unread.append(chunk)
        first = next((row.values for row in chunk.rows() if row.values is not None), None)
        if first is not None:
            if not any(name in first for name in wanted):
                lacking = " and no column ".join(map(repr, wanted))
                raise StageError(
                    f"no column {lacking}; the columns are {', '.join(map(str, first)) or 'none'}",
                    where=dataset.path if chunk.name in dataset.path else f"{dataset.path}, {chunk.name}",
                    cure=" ".join(f"dataset.columns.{key}=…" for key, name in columns if name in wanted),
                )
            break
    yield from chain(unread, chunks)
