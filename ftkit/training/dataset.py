"""Token rows from ``prepare`` become the rows that the model is trained on; each of them is accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ftkit.config.schema import Config
from ftkit.data.overlength import cut_thinking
from ftkit.data.packing import pack
from ftkit.data.parts import SOURCE
from ftkit.errors import StageError

COLUMNS = ("row", "split", "input_ids", "labels")
SPANS = ("thinking_start", "thinking_end")
IGNORED = -100


@dataclass(frozen=True)
class DataCounts:
    """What became of the rows of the training split.

    Attributes:
        rows: token rows in the split.
        overlength: of these, left out because they are longer than ``sft.max_length``.
        truncated: of these, cut at the end of their thinking so that they fit.
        longest: tokens of the longest row that is trained on.
        trained: rows that the model sees in an epoch: packed ones, if packing is on.
        tokens: tokens in them, padding not counted.
        loss_tokens: tokens that carry loss.
        fill: tokens ÷ (packed rows × ``sft.max_length``); None without packing.
    """

    rows: int
    overlength: int
    truncated: int
    longest: int
    trained: int
    tokens: int
    loss_tokens: int
    fill: float | None


def training_rows(tokens: Path, config: Config, *, vocab_size: int, split: str = "train") -> tuple[Dataset, DataCounts]:
    """Read a split, apply ``dataset.overlength``, pack if asked to.

    Args:
        tokens: parquet file of ``prepare``, one row for each assistant turn.
        vocab_size: of the model; a token outside of it is refused.
        split: ``train``, or ``heldout`` for rows to evaluate on.

    Returns:
        A dataset of numpy columns ``input_ids`` and ``labels`` (length,), ``seq_lengths`` (documents,) tokens of each
        document, ``rows`` (documents,) numbers of the source rows, with ``dataset.mix`` ``sources`` (documents,), which
        of its sources each comes from; and what became of the rows.

    Raises:
        StageError: the file is missing or of another kind, no row is left, a row is too long and
        ``dataset.overlength=error``,
            carries no loss, or holds a token that the model has no embedding for.
    """
    truncating = config.dataset.overlength == "truncate-thinking"
    mix = tuple(config.dataset.mix or ())
    table, truncated = read_rows(tokens, split, *(SPANS if truncating else ()), *((SOURCE,) if mix else ())), 0
    if truncating:
        table, cut = cut_thinking(table, config.sft.max_length)
        truncated = int(cut.sum())
    lengths = lengths_of(table, "input_ids")
    too_long = lengths > config.sft.max_length
    if too_long.any() and config.dataset.overlength == "error":
        raise overlength(table, lengths, too_long, config, tokens)
    kept = table.filter(pa.array(~too_long))
    if kept.num_rows == 0:
        raise no_rows(table.num_rows, lengths, split, config, tokens)
    packing = config.sft.packing
    bins = pack(lengths[~too_long].tolist(), config.sft.max_length) if packing else [[i] for i in range(kept.num_rows)]
    dataset, loss_tokens = _joined(kept, bins, tokens, vocab_size, mix)
    total = int(lengths[~too_long].sum())
    return dataset, DataCounts(
        rows=table.num_rows,
        overlength=int(too_long.sum()),
        truncated=truncated,
        longest=int(lengths[~too_long].max()),
        trained=len(bins),
        tokens=total,
        loss_tokens=loss_tokens,
        fill=total / (len(bins) * config.sft.max_length) if packing else None,
    )


def rows_to_compare_on(tokens: Path, *, limit: int, longest: int) -> tuple[list[list[int]], str]:
    """Token ids of the first held-out rows, or of training rows where none is held out, cut to ``longest`` tokens.

    Returns:
        The rows, and which they are: ``held-out`` or ``training``.
    """
    for split in ("heldout", "train"):
        rows = read_rows(tokens, split)["input_ids"].slice(0, limit).to_pylist()
        if rows:
            return [row[:longest] for row in rows], "held-out" if split == "heldout" else "training"
    raise StageError("there is no row to compare the models on", where=str(tokens), cure="stage=prepare with more rows")


def training_row_ids(tokens: Path, *, limit: int, longest: int) -> list[list[int]]:
    """Token ids of the first training rows, cut to ``longest`` tokens; rows of a single token are left out."""
    rows = read_rows(tokens, "train")["input_ids"].slice(0, limit).to_pylist()
    return [row[:longest] for row in rows if len(row) > 1]


def no_rows(count: int, lengths: np.ndarray, split: str, config: Config, path: Path) -> StageError:
    """None of ``count`` rows of a split is left; ``lengths`` (rows,) are theirs in tokens."""
    kind = "training" if split == "train" else "held-out"
    why = f"all {count} {kind} rows are longer than sft.max_length={config.sft.max_length}"
    cure = f"sft.max_length={max(lengths, default=0)}"
    if not count and split == "train":
        why, cure = "there is no row to train on", "stage=prepare with more rows, or dataset.heldout=0.0"
    elif not count:
        why, cure = "no row was held out to evaluate on", "sft.eval_strategy=no, or a larger dataset.heldout"
    return StageError(why, where=str(path), cure=cure)


def read_rows(path: Path, split: str = "train", *more: str) -> pa.Table:
    """The token rows of a split, with further columns besides row, split, input_ids and labels.

    Raises:
        StageError: the file is missing, or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=[*COLUMNS, *more])
    except FileNotFoundError as error:
        raise StageError("there are no token rows", where=str(path), cure="stage=prepare") from error
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise StageError(
            f"these are not the token rows of prepare: {error}", where=str(path), cure="stage=prepare"
        ) from error
    return table.filter(pa.array(table["split"].to_numpy() == split))


def _joined(
    table: pa.Table, bins: list[list[int]], path: Path, vocab_size: int, mix: Sequence[str]
) -> tuple[Dataset, int]:
    """Rows of each bin joined end to end, in arrow, with 64-bit offsets; and the number of loss tokens."""
    sizes = np.fromiter(map(len, bins), np.int64, len(bins))
    order = np.concatenate([np.asarray(documents, np.int64) for documents in bins])
    table = table.take(pa.array(order))
    ids, labels = (
        _lists(table, name).flatten().to_numpy().astype(np.int32, copy=True) for name in ("input_ids", "labels")
    )
    lengths = lengths_of(table, "input_ids")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if len(ids) != len(labels) or not np.array_equal(lengths, lengths_of(table, "labels")):
        raise StageError("input_ids and labels differ in length", where=str(path), cure="stage=prepare")
    labels[starts[:-1]] = IGNORED  # nothing comes before a document's first token that could predict it
    numbers = table["row"].to_numpy()
    with_loss = np.add.reduceat(labels != IGNORED, starts[:-1])
    if not with_loss.all():
        raise StageError(
            f"row {numbers[with_loss == 0][0]} has no token that carries loss", where=str(path), cure="stage=prepare"
        )
    check_tokens(table, "input_ids", path, vocab_size)
    documents = np.concatenate([[0], np.cumsum(sizes)])
    columns = {
        "input_ids": pa.LargeListArray.from_arrays(starts[documents], pa.array(ids)),
        "labels": pa.LargeListArray.from_arrays(starts[documents], pa.array(labels)),
        "seq_lengths": pa.LargeListArray.from_arrays(documents, pa.array(lengths)),
        "rows": pa.LargeListArray.from_arrays(documents, pa.array(numbers.astype(np.int64))),
    }
    if mix:
        columns["sources"] = pa.LargeListArray.from_arrays(documents, pa.array(_numbered(table, mix)))
    return Dataset(pa.table(columns)).with_format("numpy"), int(with_loss.sum())


def _numbered(table: pa.Table, mix: Sequence[str]) -> np.ndarray:
    """int64 (rows,): place of each row's source among those of ``dataset.mix``."""
    places = {name: place for place, name in enumerate(mix)}
    return np.array([places[name] for name in table[SOURCE].to_pylist()], np.int64)


def check_tokens(table: pa.Table, name: str, path: Path, vocab_size: int) -> None:
    """See that the model has every token of a column of lists.

    Raises:
        StageError: it has not; names the first row.
    """
    ids = _lists(table, name).flatten().to_numpy()
    if (unknown := np.flatnonzero((ids < 0) | (ids >= vocab_size))).size:
        starts = np.concatenate([[0], np.cumsum(lengths_of(table, name))])
        where = int(table["row"].to_numpy()[np.searchsorted(starts, unknown[0], side="right") - 1])
        raise StageError(
            f"row {where} holds token {ids[unknown[0]]}, and the model has {vocab_size}: "
            "the tokenizer is not the model's",
            where=str(path),
            cure="model.tokenizer=<the tokenizer of this model>, then stage=prepare,publish,train",
        )


def _lists(table: pa.Table, name: str) -> pa.ListArray | pa.LargeListArray:
    return table[name].combine_chunks()


def lengths_of(table: pa.Table, name: str) -> np.ndarray:
    """int64 (rows,): how long a column's lists are."""
    return _lists(table, name).value_lengths().to_numpy().astype(np.int64)


def overlength(table: pa.Table, lengths: np.ndarray, too_long: np.ndarray, config: Config, path: Path) -> StageError:
    numbers, longest = table["row"].to_numpy()[too_long], int(lengths.max())
    named = ", ".join(f"{row} ({size:,} tokens)" for row, size in zip(numbers[:5], lengths[too_long][:5], strict=True))
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return StageError(
        f"{len(numbers)} rows are longer than sft.max_length={config.sft.max_length}: row {named}{more}",
        where=str(path),
        cure=f"sft.max_length={longest}, or dataset.overlength=drop, or =truncate-thinking",
    )
