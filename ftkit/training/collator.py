"""Rows of a dataset to a batch: padded side by side, or joined end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftkit.training.dataset import IGNORED


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right.

    Packed rows get ``position_ids`` that begin at 0 in every document, and in the padding too, which so is one more
    document that nobody sees; rows of one document get an ``attention_mask``.

    Attributes:
        pad_token_id: what padding is made of.
        packed: whether rows hold several documents.
        pad_to: length of every batch; None takes the longest row's.
    """

    pad_token_id: int
    packed: bool
    pad_to: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: of ``input_ids``, ``labels``, ``seq_lengths``, ``rows`` as ``training_rows`` makes them.

        Returns:
            ``input_ids``, ``labels`` and ``position_ids`` or ``attention_mask``, int64 (batch, length); besides them,
            for the
            trainer: ``tokens``, the number of tokens that are not padding, and ``rows``, the source rows' numbers.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        shape = (len(examples), self.pad_to or max(lengths))
        batch = {"input_ids": np.full(shape, self.pad_token_id, np.int64), "labels": np.full(shape, IGNORED, np.int64)}
        last = "position_ids" if self.packed else "attention_mask"
        batch[last] = np.zeros(shape, np.int64)
        for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            batch["input_ids"][i, :length] = example["input_ids"]
            batch["labels"][i, :length] = example["labels"]
            batch[last][i, :] = (
                _positions(example["seq_lengths"], shape[1]) if self.packed else np.arange(shape[1]) < length
            )
        tensors: dict[str, Any] = {name: torch.from_numpy(values) for name, values in batch.items()}
        rows = [int(row) for example in examples for row in example["rows"]]
        return tensors | {"tokens": sum(lengths), "rows": rows}


@dataclass(frozen=True)
class JoiningCollator:
    """Joins the documents of all rows end to end in one row, for ``sink_attention`` and ``loss_head``.

    Attributes:
        pad_token_id: what the end is filled with, as a document of its own.
        multiple_of: length of the row is a multiple of this, for the matrix units.
    """

    pad_token_id: int
    multiple_of: int = 64

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: as ``Collator`` takes them.

        Returns:
            ``input_ids``, ``labels`` and ``position_ids``, int64 (1, length); ``cu_seq_lens_q``, int32
            (documents + 1,), where documents begin and end, and ``max_length_q``, the longest one's tokens;
            ``loss_positions``, int64 (rows,), tokens that predict one with loss, and ``loss_targets`` (rows,), these;
            ``tokens`` and ``rows`` as ``Collator``.
        """
        tokens = sum(len(example["input_ids"]) for example in examples)
        length = -(-tokens // self.multiple_of) * self.multiple_of
        batch = {
            "input_ids": np.full(length, self.pad_token_id, np.int64),
            "labels": np.full(length, IGNORED, np.int64),
        }
        for name in batch:
            np.concatenate([example[name] for example in examples], out=batch[name][:tokens], casting="same_kind")
        documents = [int(size) for example in examples for size in example["seq_lengths"]]
        sizes = [*documents, length - tokens] if length > tokens else documents
        batch["position_ids"] = _positions(documents, length)
        positions = np.flatnonzero(batch["labels"][1:] != IGNORED)
        tensors: dict[str, Any] = {name: torch.from_numpy(values)[None] for name, values in batch.items()}
        return tensors | {
            "cu_seq_lens_q": torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32)),
            "max_length_q": max(sizes),
            "loss_positions": torch.from_numpy(positions),
            "loss_targets": torch.from_numpy(batch["labels"][positions + 1]),
            "tokens": tokens,
            "rows": [int(row) for example in examples for row in example["rows"]],
        }


def _positions(documents: Sequence[int], length: int) -> np.ndarray:
    """0, 1, 2, … within each document and within the padding after them; (length,)."""
    sizes = [*documents, length - sum(documents)]
    starts = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    return np.arange(length) - starts
