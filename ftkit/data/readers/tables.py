"""Rows of Arrow tables: parquet, Arrow's own files, and folders that ``save_to_disk`` made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ftkit.data.readers.rows import CHUNK_BYTES, CHUNK_ROWS
from ftkit.data.readers.text import DAMAGE, Unreadable

BATCH = 250
"""Rows that are read at a time; so many long ones fit into memory."""
Batches = Iterator[tuple[Sequence[int], pa.Table]]
"""Line numbers and rows."""


def parquet_tables(path: Path) -> Batches:
    """Rows of a parquet file.

    Raises:
        Unreadable: it is none.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except DAMAGE as error:
        raise Unreadable(f"not a readable parquet file: {first_line(error)}") from error
    with file:
        yield from numbered(file.iter_batches(BATCH, use_threads=False))


def arrow_tables(path: Path) -> Batches:
    """Rows of an Arrow file or stream, Feather among them.

    Raises:
        Unreadable: it is none.
    """
    with pa.memory_map(str(path)) as source:
        try:
            batches = _record_batches(source)
        except DAMAGE as error:
            raise Unreadable(f"not a readable Arrow file: {first_line(error)}") from error
        yield from numbered(batches)


def _record_batches(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(source)
        return (file.get_batch(i) for i in range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        return iter(pa.ipc.open_stream(source))


def saved_tables(folder: Path) -> Batches:
    """Rows of a folder that ``datasets.Dataset.save_to_disk`` made.

    Raises:
        Unreadable: it cannot be loaded.
    """
    import datasets

    try:
        rows = datasets.Dataset.load_from_disk(str(folder))
    except Exception as error:  # datasets raises many unrelated types on a damaged folder
        raise Unreadable(f"not a data set of save_to_disk: {first_line(error)}") from error
    yield from numbered(rows.with_format("arrow").iter(BATCH))  # type: ignore[arg-type]  # typed as dicts


def numbered(batches: Iterable[pa.RecordBatch | pa.Table]) -> Batches:
    """Batches joined to tables of some rows or megabytes, with the rows' positions from 1."""
    done = 0
    waiting: list[pa.Table] = []
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, BATCH):  # an Arrow file's batches are as long as they are
            waiting.append(table.slice(start, BATCH))
            rows = sum(t.num_rows for t in waiting)
            if rows >= CHUNK_ROWS or sum(t.nbytes for t in waiting) > CHUNK_BYTES:
                yield range(done + 1, done + rows + 1), pa.concat_tables(waiting)
                done, waiting = done + rows, []
    if rows := sum(t.num_rows for t in waiting):
        yield range(done + 1, done + rows + 1), pa.concat_tables(waiting)


def with_text(table: pa.Table, columns: Iterable[str]) -> pa.Table:
    """The table with the bytes of some columns as text, also inside of lists and structs; Spark and others write so.

    Bytes that are no UTF-8 become text that cannot be read, for which a row is refused.
    """
    for name in columns:
        at = table.schema.get_field_index(name)
        if at >= 0 and (kind := _as_text(table.schema.field(at).type)) != table.schema.field(at).type:
            as_it_is = pc.CastOptions(kind, allow_invalid_utf8=True)
            table = table.set_column(at, name, pc.cast(table.column(at), options=as_it_is))
    return table


def _as_text(kind: pa.DataType) -> pa.DataType:
    """A type with text for bytes; the same one where it has none."""
    types = pa.types
    of_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if any(is_one(kind) for is_one in of_bytes):
        return pa.large_string()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_as_text(field.type)) for field in kind])
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind)):
        return kind
    inner = _as_text(kind.value_type)
    if inner == kind.value_type:
        return kind
    return inner if types.is_dictionary(kind) else pa.large_list(inner)


def first_line(error: BaseException) -> str:
    """An error's text, or its name where it has none."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
