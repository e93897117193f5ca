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

from ftkit.data.harmony import labels_of
from ftkit.data.overlength import WITHIN_CHARACTERS
from ftkit.data.preparation import MESSAGE, Part, renamed
from ftkit.files import written_aside

PARTS = 8
"""Parts that are joined at a time; they make one row group."""

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
    parts: Sequence[Part], heldout: np.ndarray, within_characters: Sequence[int], targets: Sequence[Path]
) -> None:
    """Write the conversations as parquet and JSONL, their tokens as parquet, and the refused rows as JSONL.

    Args:
        heldout: bool (conversations,): whether each is held out, in the order of the parts.
        within_characters: ids of tokens that begin inside a character, for ``cut_thinking``.
        targets: the four files, in that order.
    """
    with ExitStack() as stack:
        table, lines, tokens, rejected = (stack.enter_context(written_aside(target)) for target in targets)
        with ThreadPoolExecutor(2) as threads:  # Arrow works outside of the interpreter's lock
            conversations = threads.submit(_write_conversations, parts, heldout, table, lines)
            _write_tokens(parts, heldout, within_characters, tokens)
            conversations.result()
        with rejected.open("wb") as stream:
            stream.writelines(part.rejected.read_bytes() for part in parts)


def _write_conversations(parts: Sequence[Part], heldout: np.ndarray, table: Path, lines: Path) -> None:
    schema = _conversation_schema(parts)
    with pq.ParquetWriter(table, schema) as writer, lines.open("wb") as stream:
        for joined, held in _joined(parts, heldout):
            conversations = _conversations(joined, held)
            stream.writelines(_lines(conversations))
            writer.write_table(conversations.select(schema.names).cast(schema))


def _write_tokens(parts: Sequence[Part], heldout: np.ndarray, within_characters: Sequence[int], path: Path) -> None:
    schema = TOKEN_SCHEMA.with_metadata({WITHIN_CHARACTERS: json.dumps(within_characters)})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for joined, held in _joined(parts, heldout):
            writer.write_table(_tokens(joined, held).cast(schema))


def _joined(parts: Sequence[Part], heldout: np.ndarray) -> Iterator[tuple[Sequence[Part], np.ndarray]]:
    """Some parts, and where their conversations go."""
    done = 0
    for i in range(0, len(parts), PARTS):
        some = parts[i : i + PARTS]
        count = sum(len(part.rows) for part in some)
        yield some, heldout[done : done + count]
        done += count


def _conversation_schema(parts: Sequence[Part]) -> pa.Schema:
    tags = dict.fromkeys(renamed(tag) for part in parts for tag in part.tags)
    fields = {"row": pa.int64(), "split": pa.string(), "messages": pa.list_(MESSAGE)}
    return pa.schema(list((fields | {tag: pa.string() for tag in tags}).items()))


def _conversations(parts: Sequence[Part], heldout: np.ndarray) -> pa.Table:
    table = pa.concat_tables([_read(part.conversations) for part in parts], promote_options="default")
    return table.append_column("split", _split(heldout))


def _lines(conversations: pa.Table) -> Iterator[bytes]:
    rows, splits, tails = (conversations[name].to_pylist() for name in ("row", "split", "tail"))
    for row, split, tail in zip(rows, splits, tails, strict=True):
        yield f'{{"row": {row}, "split": "{split}", {tail}\n'.encode()


def _tokens(parts: Sequence[Part], heldout: np.ndarray) -> pa.Table:
    table = pa.concat_tables([_read(part.tokens) for part in parts]).combine_chunks()
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    conversation = np.concatenate([part.of + start for part, start in zip(parts, before, strict=False)])
    ids = table["input_ids"].combine_chunks()
    starts = ids.offsets.to_numpy()
    labels = labels_of(ids.flatten().to_numpy(), starts, table["prompt_length"].to_numpy())
    columns = {
        "row": pa.array(np.concatenate([part.rows for part in parts])[conversation]),
        "split": _split(heldout[conversation]),
        "input_ids": ids,
        "labels": pa.ListArray.from_arrays(pa.array(starts - starts[0]), pa.array(labels)),
    }
    return pa.table(columns | {name: table[name] for name in TOKEN_SCHEMA.names[len(columns) :]}, schema=TOKEN_SCHEMA)


def _split(heldout: np.ndarray) -> pa.Array:
    return pa.array(np.where(heldout, "heldout", "train"), pa.string())


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
