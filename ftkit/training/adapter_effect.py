"""What the trained adapter and its parts do to the log-probabilities of a few rows, for engines to be held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from ftkit.config.schema import Config
from ftkit.serving.endpoint.adapter_effect import WHOLE, Effect
from ftkit.training.collator import Collator, JoiningCollator
from ftkit.training.dataset import rows_to_compare_on
from ftkit.training.heldout import gathering, token_losses

ROWS, LONGEST = 4, 512
"""Rows that are measured, and tokens of each."""


def measure_effect(model: PeftModel, config: Config, tokens: Path, pad_token_id: int) -> Effect:
    """Measure an adapter on held-out rows, or on training rows where none is held out.

    Args:
        model: with the adapter, as it trains, sharded or not; all processes call this.
        tokens: parquet file of ``prepare``.
    """
    rows, _ = rows_to_compare_on(tokens, limit=ROWS, longest=min(LONGEST, config.sft.max_length))
    collate = JoiningCollator(pad_token_id) if config.model.joins_rows else Collator(pad_token_id, packed=False)
    matrices = {name: weight for name, weight in model.named_parameters() if ".lora_B." in name}
    experts = {name for name in matrices if ".experts." in name}
    parts = {"attention": experts, "experts": matrices.keys() - experts} if 0 < len(experts) < len(matrices) else {}
    training = model.training
    model.eval()
    measured = {}
    for part, left_out in {"": matrices.keys(), WHOLE: set[str](), **parts}.items():
        with _without([matrices[name] for name in sorted(left_out)]):
            measured[part] = [_logprobs(model, collate, row) for row in rows]
    model.train(training)
    return Effect(rows, measured.pop(""), measured)


def _logprobs(model: nn.Module, collate: Collator | JoiningCollator, row: Sequence[int]) -> list[float]:
    """Of each token but the first."""
    ids = np.asarray(row, np.int64)
    example: dict[str, Any] = {"input_ids": ids, "labels": ids.copy(), "seq_lengths": [len(ids)], "rows": [0]}
    example["labels"][0] = -100
    losses, _ = gathering(model, token_losses)(collate([example]))
    return (-losses).tolist()


@contextmanager
def _without(matrices: Sequence[nn.Parameter]) -> Iterator[None]:
    """Some of the adapters' second matrices are 0 meanwhile, which leaves these adapters out."""
    kept = [matrix.detach().clone() for matrix in matrices]
    with torch.no_grad():
        for matrix in matrices:
            matrix.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for matrix, values in zip(matrices, kept, strict=True):
                matrix.copy_(values)
