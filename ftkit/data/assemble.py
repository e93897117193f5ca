"""Parts to the files of ``prepare``, a few parts at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftkit.chat.harmony_render import labels_of
from ftkit.data.mixture import SURPLUS, of_conversations
from ftkit.data.overlength import WITHIN_CHARACTERS
from ftkit.data.parts import MESSAGE, REJECTED, SOURCE, TOOLS, Part
from ftkit.data.preferences import REJECTED_IDS
from ftkit.files import written_aside

PARTS = 8
"""Parts that are joined at a time; they make one row group."""

SPLITS = pa.array(["train", "heldout", "surplus"])
"""Names of ``TRAIN``, ``HELD_OUT`` and ``SURPLUS``; rows of the last are not written."""
OPTIONAL = {TOOLS: pa.string(), REJECTED: MESSAGE}
"""Columns of the conversations that only some data sets have."""

TOKEN_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "split": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
        "thinking_start": pa.int32(),
        "thinking_end": pa.int32(),
    }
)
"""Token rows, one for each assistant turn: number of the source row, ids, labels, where prompt and thinking end."""


def assemble(
    parts: Sequence[Part], places: np.ndarray, within_characters: Sequence[int], targets: Sequence[Path]
) -> None:
    """Write the conversations as parquet and JSONL, their tokens as parquet, and the refused rows as JSONL.

    Args:
        places: int8 (conversations,): where each goes, in the order of the parts; surplus goes nowhere.
        within_characters: ids of tokens that begin inside a character, for ``cut_thinking``.
        targets: the four files, in that order.
    """
    with ExitStack() as stack:
        table, lines, tokens, rejected = (stack.enter_context(written_aside(target)) for target in targets)
        with ThreadPoolExecutor(2) as threads:  # Arrow works outside of the interpreter's lock
            conversations = threads.submit(_write_conversations, parts, places, table, lines)
            _write_tokens(parts, places, within_characters, tokens)
            conversations.result()
        with rejected.open("wb") as stream:
            stream.writelines(part.rejected.read_bytes() for part in parts)


def _write_conversations(parts: Sequence[Part], places: np.ndarray, table: Path, lines: Path) -> None:
    schema = _conversation_schema(parts)
    with pq.ParquetWriter(table, schema) as writer, lines.open("wb") as stream:
        for joined, there in _joined(parts, places):
            conversations = _conversations(joined, there)
            stream.writelines(_lines(conversations))
            for name, kind in OPTIONAL.items():
                if name in schema.names and name not in conversations.schema.names:
                    conversations = conversations.append_column(name, pa.nulls(len(conversations), kind))
            writer.write_table(conversations.select(schema.names).cast(schema))


def _write_tokens(parts: Sequence[Part], places: np.ndarray, within_characters: Sequence[int], path: Path) -> None:
    pairs = any(REJECTED_IDS in _schema(part.tokens).names for part in parts)
    columns = TOKEN_SCHEMA.append(pa.field(REJECTED_IDS, pa.list_(pa.int32()))) if pairs else TOKEN_SCHEMA
    columns = columns.append(pa.field(SOURCE, pa.string())) if _is_mixed(parts) else columns
    schema = columns.with_metadata({WITHIN_CHARACTERS: json.dumps(within_characters)})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for joined, there in _joined(parts, places):
            writer.write_table(_tokens(joined, there, columns).cast(schema))


def _is_mixed(parts: Sequence[Part]) -> bool:
    return any(part.source for part in parts)


def _joined(parts: Sequence[Part], places: np.ndarray) -> Iterator[tuple[Sequence[Part], np.ndarray]]:
    """Some parts, and where their conversations go."""
    done = 0
    for i in range(0, len(parts), PARTS):
        some = parts[i : i + PARTS]
        count = sum(len(part.rows) for part in some)
        yield some, places[done : done + count]
        done += count


def _conversation_schema(parts: Sequence[Part]) -> pa.Schema:
    tags = dict.fromkeys(tag for part in parts for tag in part.tags)
    source = {SOURCE: pa.string()} if _is_mixed(parts) else {}
    fields = {"row": pa.int64(), "split": pa.string(), **source, "messages": pa.list_(MESSAGE)}
    for name, kind in OPTIONAL.items():
        if any(name in _schema(part.conversations).names for part in parts):
            fields[name] = kind
    return pa.schema(list((fields | {tag: pa.string() for tag in tags}).items()))


def _conversations(parts: Sequence[Part], places: np.ndarray) -> pa.Table:
    table = pa.concat_tables([_read(part.conversations) for part in parts], promote_options="default")
    table = table.append_column("split", _split(places))
    if _is_mixed(parts):
        table = table.append_column(SOURCE, pa.array(of_conversations(parts)[0], pa.string()))
    return _without_surplus(table, places)


def _lines(conversations: pa.Table) -> Iterator[bytes]:
    rows, splits, tails = (conversations[name].to_pylist() for name in ("row", "split", "tail"))
    sources = conversations[SOURCE].to_pylist() if SOURCE in conversations.schema.names else [None] * len(rows)
    for row, split, source, tail in zip(rows, splits, sources, tails, strict=True):
        of = f'"source": "{source}", ' if source else ""
        yield f'{{"row": {row}, "split": "{split}", {of}{tail}\n'.encode()


def _tokens(parts: Sequence[Part], places: np.ndarray, schema: pa.Schema) -> pa.Table:
    table = pa.concat_tables([_read(part.tokens) for part in parts]).combine_chunks()
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    conversation = np.concatenate([part.of + start for part, start in zip(parts, before, strict=False)])
    ids = table["input_ids"].combine_chunks()
    starts = ids.offsets.to_numpy()
    labels = labels_of(ids.flatten().to_numpy(), starts, table["prompt_length"].to_numpy())
    columns = {
        "row": pa.array(np.concatenate([part.rows for part in parts])[conversation]),
        "split": _split(places[conversation]),
        "input_ids": ids,
        "labels": pa.ListArray.from_arrays(pa.array(starts - starts[0]), pa.array(labels)),
    }
    if SOURCE in schema.names:
        table = table.append_column(SOURCE, pa.array(of_conversations(parts)[0][conversation], pa.string()))
    rest = {name: table[name] for name in schema.names[len(columns) :]}
    return _without_surplus(pa.table(columns | rest, schema=schema), places[conversation])


def _split(places: np.ndarray) -> pa.Array:
    return SPLITS.take(pa.array(places))


def _without_surplus(table: pa.Table, places: np.ndarray) -> pa.Table:
    return table.filter(pa.array(places != SURPLUS)) if (places == SURPLUS).any() else table


def _schema(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).schema


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
