"""Rows that are too long: the end of their thinking is cut, never the answer, and never inside a character."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

WITHIN_CHARACTERS = b"ftkit.tokens_within_characters"
"""Metadata of the token rows' parquet file: ids of the tokens that begin inside a character's bytes, a JSON list."""


def cut_thinking(rows: pa.Table, max_length: int) -> tuple[pa.Table, np.ndarray]:
    """Cut the end of the thinking of rows longer than ``max_length`` so that they fit.

    Args:
        rows: of ``prepare``, with the columns ``input_ids``, ``labels``, ``thinking_start``, ``thinking_end``.

    Returns:
        The rows, those still too long if not even a token of thinking could stay; and bool (rows,): which were cut.
    """
    ids, labels = (rows[name].combine_chunks() for name in ("input_ids", "labels"))
    lengths = ids.value_lengths().to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = ids.flatten().to_numpy()
    spans = np.stack([rows[name].to_numpy() for name in ("thinking_start", "thinking_end")], axis=1).astype(np.int64)
    inside = set(json.loads((rows.schema.metadata or {}).get(WITHIN_CHARACTERS, b"[]")))
    keep, cut = np.ones(len(flat), bool), np.zeros(len(lengths), bool)
    for row in np.flatnonzero(lengths > max_length):
        first, last = starts[row] + spans[row]
        end = last - (lengths[row] - max_length)
        while end > first and flat[end] in inside:
            end -= 1
        if end > first:
            keep[end:last] = False
            cut[row] = True
    lengths = np.add.reduceat(keep, starts[:-1], dtype=np.int64) if len(lengths) else lengths
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    for name, values in (("input_ids", flat), ("labels", labels.flatten().to_numpy())):
        column = pa.LargeListArray.from_arrays(offsets, pa.array(values[keep]))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows, cut
