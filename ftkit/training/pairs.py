"""Pairs of answers from ``prepare`` become rows to train on and batches; each of them is accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ftkit.config.schema import Config
from ftkit.data.parts import SOURCE
from ftkit.data.preferences import REJECTED_IDS
from ftkit.training.dataset import DataCounts, check_tokens, lengths_of, no_rows, overlength, read_rows


def pair_rows(tokens: Path, config: Config, *, vocab_size: int, split: str = "train") -> tuple[Dataset, DataCounts]:
    """Read a split of pairs; one with an answer that is too long is left out, or stops the run.

    Args:
        tokens: parquet file of ``prepare``.
        vocab_size: of the model; a token outside of it is refused.
        split: ``train``, or ``heldout`` for pairs to evaluate on.

    Returns:
        A dataset of ``input_ids``, int32 (length,), the prompt with the better answer, ``prompt_length``,
        ``rejected_ids``, int32 (length,), the worse answer, ``row``, the source row's number, and with
        ``dataset.mix`` ``source``, its source's name; and what became of the pairs. Tokens are those of both answers,
        each with its prompt.

    Raises:
        StageError: the file is missing or holds no pairs, none is left, or a token is none of the model's.
    """
    of = (SOURCE,) if config.dataset.mix else ()
    table = read_rows(tokens, split, "prompt_length", REJECTED_IDS, *of)
    prompts, limit = table["prompt_length"].to_numpy().astype(np.int64), config.sft.max_length
    better, worse = lengths_of(table, "input_ids"), lengths_of(table, REJECTED_IDS) + prompts
    longer = np.maximum(better, worse)
    too_long = longer > limit
    if too_long.any() and config.dataset.overlength == "error":
        raise overlength(table, longer, too_long, config, tokens)
    kept = table.filter(pa.array(~too_long))
    if kept.num_rows == 0:
        raise no_rows(table.num_rows, longer, split, config, tokens)
    for name in ("input_ids", REJECTED_IDS):
        check_tokens(kept, name, tokens, vocab_size)
    rows = Dataset(kept.select(["row", "input_ids", "prompt_length", REJECTED_IDS, *of])).with_format("numpy")
    both = (better + worse)[~too_long]
    return rows, DataCounts(
        rows=table.num_rows,
        overlength=int(too_long.sum()),
        truncated=0,
        longest=int(longer[~too_long].max()),
        trained=kept.num_rows,
        tokens=int(both.sum()),
        loss_tokens=int((both - 2 * prompts[~too_long]).sum()),
        fill=None,
    )


@dataclass(frozen=True)
class PairCollator:
    """Pairs to a batch as TRL's DPOTrainer takes it: the better answers, and below them the worse ones.

    Attributes:
        pad_token_id: what padding is made of, on the right.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: as ``pair_rows`` makes them.

        Returns:
            ``input_ids``, ``attention_mask`` and ``completion_mask`` (1 on answers), int64 (2 · pairs, length); for the
            trainer ``tokens`` and ``loss_tokens``, the numbers of those that are no padding and of those of answers,
            and ``rows``, the source rows' numbers.
        """
        prompts = [int(example["prompt_length"]) for example in examples] * 2
        better = [np.asarray(example["input_ids"]) for example in examples]
        worse = [
            np.concatenate([ids[:prompt], example[REJECTED_IDS]])
            for ids, prompt, example in zip(better, prompts, examples, strict=False)
        ]
        rows = [*better, *worse]
        shape = (len(rows), max(map(len, rows)))
        ids, there, answers = np.full(shape, self.pad_token_id, np.int64), np.zeros(shape, int), np.zeros(shape, int)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            ids[i, : len(row)], there[i, : len(row)], answers[i, prompt : len(row)] = row, 1, 1
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(there),
            "completion_mask": torch.from_numpy(answers),
            "tokens": int(there.sum()),
            "loss_tokens": int(answers.sum()),
            "rows": [int(example["row"]) for example in examples],
        }
