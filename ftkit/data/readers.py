"""Raw rows from a file, from data that ships with ftkit, or from the hub; a line that cannot be read is a row too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ftkit.assets import asset_path
from ftkit.config.schema import Dataset
from ftkit.errors import StageError

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class RawRow:
    """One row as it was read.

    Attributes:
        number: line of a JSONL file, or position in a table, counted from 1.
        values: the row's columns; None when it could not be read.
        reason: why it could not be read; empty when it could.
    """

    number: int
    values: dict[str, Any] | None
    reason: str = ""


def read_rows(dataset: Dataset) -> Iterator[RawRow]:
    """Read ``dataset.path``, at most ``dataset.max_rows`` rows of it.

    Raises:
        StageError: the source is missing, empty, unreadable, or lacks the configured columns.
    """
    return islice(_read(dataset), dataset.max_rows)


def local_file(dataset: Dataset) -> Path | None:
    """The file that ``dataset.path`` names, or None when it names a hub data set."""
    path = Path(asset_path(dataset.path))
    return path if path.suffix in FILE_SUFFIXES else None


def _read(dataset: Dataset) -> Iterator[RawRow]:
    path = local_file(dataset)
    if path is None:
        yield from _hub_rows(dataset)
        return
    if not path.is_file():
        raise StageError("there is no such file", where=str(path), cure="dataset.path=<your rows>")
    if path.stat().st_size == 0:
        raise StageError("the file is empty", where=str(path), cure="dataset.path=<your rows>")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    yield from _with_columns(rows, dataset, str(path))


def _with_columns(rows: Iterator[RawRow], dataset: Dataset, where: str) -> Iterator[RawRow]:
    """Stop at the first readable row when it has neither column; later rows that lack one are refused one by one."""
    wanted = (dataset.columns.question, dataset.columns.answer)
    checked = False
    for row in rows:
        if row.values is not None and not checked:
            absent = [name for name in wanted if name not in row.values]
            if len(absent) == len(wanted):
                found = ", ".join(map(str, row.values)) or "none"
                raise StageError(
                    f"no column {' and no column '.join(map(repr, absent))}; the columns are {found}",
                    where=where,
                    cure="dataset.columns.question=… dataset.columns.answer=…",
                )
            checked = True
        yield row


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _jsonl_row(number, line)


def _jsonl_row(number: int, line: bytes) -> RawRow:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RawRow(number, None, f"not UTF-8: byte {error.start} of the line")
    except ValueError as error:
        return RawRow(number, None, f"not JSON: {error}")
    if not isinstance(values, dict):
        return RawRow(number, None, f"not a JSON object but {type(values).__name__}")
    return RawRow(number, values)


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches()
        rows = (values for batch in batches for values in batch.to_pylist())
        for number, values in enumerate(rows, start=1):
            yield RawRow(number, values)
    except (pa.ArrowException, OSError) as error:
        raise StageError(f"not a readable parquet file: {error}", where=str(path)) from error


def _hub_rows(dataset: Dataset) -> Iterator[RawRow]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset.path, split=dataset.split, revision=dataset.revision)
    except Exception as error:  # the hub's client raises many unrelated types, requests' and its own among them
        raise StageError(
            f"the data set cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0]}",
            where=f"{dataset.path}, split {dataset.split}, on the hub",
            cure="check name, network and HF_TOKEN, or take a local copy: dataset=jsonl dataset.path=rows.jsonl",
        ) from error
    raw = (RawRow(number, dict(values)) for number, values in enumerate(rows, start=1))
    yield from _with_columns(raw, dataset, dataset.path)
