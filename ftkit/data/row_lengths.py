"""How long the rows are that are trained on one by one, for predictions of memory and speed; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.config.schema import Config

if TYPE_CHECKING:
    import numpy as np

LONGEST = 64
"""So many of the longest rows are known by their lengths."""


@dataclass(frozen=True)
class RowLengths:
    """Of the training rows.

    Attributes:
        mean: tokens of a row.
        longest: tokens of the longest rows, ``LONGEST`` or all that there are; the longest first, at least one.
    """

    mean: float
    longest: Sequence[int]

    def of_longest(self, rows: int) -> int:
        """Mean tokens of so many of the longest rows, rounded up: more never meet in a batch of so many."""
        known = [*self.longest[:rows]]
        return math.ceil(sum(known + [known[-1]] * (rows - len(known))) / rows)


def longest_of(lengths: np.ndarray) -> list[int]:
    """The ``LONGEST`` longest of int (rows,), the longest first."""
    return sorted(lengths.tolist(), reverse=True)[:LONGEST]


def row_lengths(longest: Sequence[int], tokens: int, rows: int, config: Config) -> RowLengths | None:
    """As training takes them: what is longer than ``sft.max_length`` is cut or left out; None if none is known then.

    Args:
        longest: of ``longest_of``.
        tokens: of all rows together.
        rows: how many there are.
        config: the whole configuration.
    """
    limit = config.sft.max_length
    too_long = [length for length in longest if length > limit]
    if config.dataset.overlength == "truncate-thinking":
        longest, tokens = [min(length, limit) for length in longest], tokens - sum(too_long) + limit * len(too_long)
    else:
        longest, tokens, rows = longest[len(too_long) :], tokens - sum(too_long), rows - len(too_long)
    return RowLengths(min(tokens / rows, longest[0]), longest) if longest else None


def at_their_longest(config: Config, lengths: RowLengths | None) -> Config:
    """The same as if all rows were as long as the longest that can meet in a batch: what memory has to hold.

    Packed rows are full, and rows that are padded side by side take the room of the longest: they are left as they are,
    as is anything where no lengths are known.
    """
    if lengths is None or not _one_by_one(config):
        return config
    return _with_length(config, lengths.of_longest(config.sft.rows_at_a_time))


def on_average(config: Config, lengths: RowLengths | None) -> Config:
    """The same as if all rows were as long as they are on average: what a step's time follows from."""
    return _with_length(config, max(1, round(lengths.mean))) if lengths and _one_by_one(config) else config


def _one_by_one(config: Config) -> bool:
    return not config.sft.packing and config.model.joins_rows and config.method.name == "sft"


def _with_length(config: Config, tokens: int) -> Config:
    length = min(tokens, config.sft.max_length)
    return config.model_copy(update={"sft": config.sft.model_copy(update={"max_length": length})})
