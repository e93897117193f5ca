"""Chunks of rows from ``dataset.path``: files of any kind that is read, or a data set on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from ftkit.config.data_files import DELIMITED, READ, TABLES, WORKBOOKS, DataFiles, find_files, find_validation, kind_of
from ftkit.config.dataset import Dataset
from ftkit.data.readers.delimited import delimited_rows
from ftkit.data.readers.encodings import encoding_of
from ftkit.data.readers.json_files import json_rows
from ftkit.data.readers.rows import CHUNK_ROWS, Chunk, Reading, gathered
from ftkit.data.readers.tables import arrow_tables, first_line, numbered, parquet_tables, saved_tables, with_text
from ftkit.data.readers.text import DAMAGE, Unreadable, opened
from ftkit.data.readers.workbooks import workbook_rows
from ftkit.errors import StageError, nearest

Say = Callable[[str], None]
SHOWN_COLUMNS = 30


def read_chunks(
    dataset: Dataset, header: Sequence[str] | None = None, left_out: Say = lambda line: None
) -> Iterator[Chunk]:
    """Read at most ``dataset.max_rows`` rows of ``dataset.path``, then the held-out rows of ``dataset.validation``.

    Args:
        dataset: where the rows are, and which columns they have.
        header: names of the columns of delimited text that does not begin with them.
        left_out: takes, a line at a time, what lies in the source and is not read.

    Raises:
        StageError: a source is missing, empty, unreadable, or lacks the configured columns.
    """
    found = find_files(dataset.place, dataset.split)
    for entry in found.left_out if found else ():
        left_out(str(entry))
    rows = 0
    for chunk in _first(_checked(_source(dataset, found, header, left_out), dataset), dataset.max_rows):
        rows = chunk.before + chunk.lines[-1]
        yield chunk
    for chunk in _checked(_validation(dataset, found, header, left_out), dataset):
        yield replace(chunk, before=rows + chunk.before, validation=True)


def _first(chunks: Iterator[Chunk], rows: int | None) -> Iterator[Chunk]:
    for chunk in chunks:
        if rows is not None and len(chunk.lines) >= rows:
            yield chunk.head(rows)
            return
        rows = rows and rows - len(chunk.lines)
        yield chunk


def _source(dataset: Dataset, found: DataFiles | None, header: Sequence[str] | None, say: Say) -> Iterator[Chunk]:
    if found is None:
        return _hub_chunks(dataset, dataset.split)
    if not found.files:
        raise nothing_to_read(dataset, found)
    return _file_chunks(found.files, dataset, header, say)


def nothing_to_read(dataset: Dataset, found: DataFiles) -> StageError:
    """What to say of a path that names no file to read."""
    if found.splits != ("train",) and dataset.split not in found.splits:
        there = ", ".join(found.splits)
        return StageError(
            f"no file of the split {dataset.split}; there are {there}",
            where=dataset.place,
            cure=f"dataset.split={found.splits[0]}",
        )
    why = f": {found.left_out[0]}" if found.left_out else ""
    return StageError(f"there is nothing to read{why}", where=dataset.place, cure=f"a file that is read: {READ}")


def _validation(dataset: Dataset, found: DataFiles | None, header: Sequence[str] | None, say: Say) -> Iterator[Chunk]:
    """The user's own held-out rows; of a hub data set they are a split of it, unless files of that name lie here."""
    if dataset.validation is None:
        return _file_chunks(found.validation, dataset, header, say) if found and found.validation else iter(())
    own = find_validation(dataset.validation, on_hub=found is None)
    if own is None:
        return _hub_chunks(dataset, dataset.validation)
    if not own.files:
        raise StageError(
            "no file of held-out rows", where=dataset.validation, cure="dataset.validation=<a file of rows>"
        )
    return _file_chunks(own.files, dataset, header, say)


def _file_chunks(files: Sequence[Path], dataset: Dataset, header: Sequence[str] | None, say: Say) -> Iterator[Chunk]:
    folder = Path(*_common(files))
    before = 0
    for path in files:
        name, last = path.relative_to(folder).as_posix(), 0
        reading = Reading(
            path, _wanted(dataset), header, dataset.encoding, lambda what, name=name: say(f"{name}: {what}")
        )
        try:
            for lines, content in _batches(reading):
                yield Chunk(name, before, lines, content)
                last = lines[-1]
        except (Unreadable, *DAMAGE) as error:
            if len(files) == 1 and not last:
                cure = getattr(error, "cure", "") or "dataset.path=<your rows>"
                raise StageError(_reason(error), where=str(path), cure=cure) from error
            reason = f"the rest of the file cannot be read: {_damage(error)}" if last else _reason(error)
            last += 1
            yield Chunk(name, before, [last], [(reason, "")])
        before += last


def _reason(error: BaseException) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    return f"the file cannot be read: {_damage(error)}"


def _damage(error: BaseException) -> str:
    return "it needs more memory than there is" if isinstance(error, MemoryError) else first_line(error)


def _common(files: Sequence[Path]) -> tuple[str, ...]:
    """Parts of the folder that all files lie in."""
    parents = [path.parent.parts for path in files]
    shared = 0
    for names in zip(*parents, strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    return parents[0][:shared]


def _batches(reading: Reading) -> Iterator[tuple[Sequence[int], Any]]:
    """Line numbers and content of some rows at a time."""
    path, kind = reading.path, kind_of(reading.path)
    if path.is_dir():
        return saved_tables(path)
    if kind in TABLES:
        return parquet_tables(path) if kind == ".parquet" else arrow_tables(path)
    return gathered(_rows(reading, kind), (Unreadable, *DAMAGE))


def _rows(reading: Reading, kind: str) -> Iterator[tuple[int, Any]]:
    if kind in WORKBOOKS:
        yield from workbook_rows(reading)
        return
    with opened(reading.path) as stream:
        encoding = encoding_of(stream, reading.encoding)
    if kind in DELIMITED:
        yield from delimited_rows(reading, encoding, tabs=kind == ".tsv")
    else:
        yield from json_rows(reading, encoding)


def _hub_chunks(dataset: Dataset, split: str) -> Iterator[Chunk]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset.place, dataset.subset, split=split, revision=dataset.revision)
    except Exception as error:  # the hub's client raises many unrelated types, requests' and its own among them
        subset = f", subset {dataset.subset}" if dataset.subset else ""
        key, there = _there(dataset, split) if isinstance(error, ValueError) else ("", [])
        cure = "check name, network and HF_TOKEN, or take a local copy: dataset=jsonl dataset.path=rows.jsonl"
        what = f"the data set cannot be loaded: {type(error).__name__}: {first_line(error)}"
        if there:
            what = f"the data set has no {key} {split}; there are {', '.join(there)}"
            if key == "subset":
                named = f"no subset {dataset.subset}" if dataset.subset else "several subsets"
                what = f"the data set has {named}; there are {', '.join(there)}"
            setting = "validation" if key == "split" and split == dataset.validation else key
            wanted = dataset.subset if key == "subset" else split
            cure = f"dataset.{setting}={nearest(wanted or '', there) or there[0]}"
        raise StageError(what, where=f"{dataset.place}{subset}, split {split}, on the hub", cure=cure) from error
    for lines, table in numbered(cast(Iterator[pa.Table], rows.with_format("arrow").iter(CHUNK_ROWS))):
        yield Chunk(dataset.place, 0, lines, table)


def _there(dataset: Dataset, split: str) -> tuple[str, list[str]]:
    """``subset`` or ``split``, whichever the hub's data set has not as it is asked for; and those it has."""
    import datasets

    try:
        subsets = datasets.get_dataset_config_names(dataset.place, revision=dataset.revision)
        if dataset.subset not in subsets and (dataset.subset or len(subsets) > 1):
            return "subset", subsets
        splits = datasets.get_dataset_split_names(dataset.place, dataset.subset, revision=dataset.revision)
    except Exception:  # what could not be loaded may not tell what it has either
        return "", []
    return ("split", splits) if split not in splits else ("", [])


def _wanted(dataset: Dataset) -> tuple[str, ...]:
    """The columns of which a row must have one."""
    columns = dataset.columns
    sides = (columns.chosen, columns.rejected)
    alone = (columns.question, columns.answer, columns.messages)
    return tuple(name for name in (sides if columns.chosen else alone) if name is not None)


def _checked(chunks: Iterator[Chunk], dataset: Dataset) -> Iterator[Chunk]:
    """Stop at the first readable row if it has none of the columns; later rows that lack one are refused."""
    wanted = _wanted(dataset)
    unread: list[Chunk] = []
    chunks = _with_text(chunks, dataset)
    for chunk in chunks:
        unread.append(chunk)
        first = next((row.values for row in chunk.rows() if row.values is not None), None)
        if first is not None:
            if not any(name in first for name in wanted):
                raise _no_column(first, wanted, chunk, dataset)
            break
    yield from chain(unread, chunks)


def _with_text(chunks: Iterator[Chunk], dataset: Dataset) -> Iterator[Chunk]:
    names = [name.removesuffix("?") for _, name in dataset.columns if name is not None]
    for chunk in chunks:
        table = chunk.content
        yield replace(chunk, content=with_text(table, names)) if isinstance(table, pa.Table) else chunk


def _no_column(row: dict[str, Any], wanted: Sequence[str], chunk: Chunk, dataset: Dataset) -> StageError:
    lacking = " and no column ".join(map(repr, wanted))
    names = [str(name)[:80] for name in row]
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return StageError(
        f"no column {lacking}; the columns are {', '.join(names[:SHOWN_COLUMNS]) or 'none'}{more}",
        where=dataset.place if chunk.name in dataset.place else f"{dataset.place}, {chunk.name}",
        cure=" ".join(f"dataset.columns.{key}=…" for key, name in dataset.columns if name in wanted),
    )
