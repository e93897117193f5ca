"""The loss on held-out rows, on the thinking and on the answers apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.chat.format import Parser, parser_of
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.models.lora import bare_model
from ftkit.training.collator import Collator
from ftkit.training.dataset import IGNORED, training_rows
from ftkit.training.losses import PARTS, of_source

LOGIT_ROWS = 512
"""Rows of logits that exist at a time."""
NOT_FOR_THE_MODEL = ("labels", "loss_positions", "loss_targets", "tokens", "rows")
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class HeldOut:
    """Held-out rows, and the loss of a model on them.

    Draws no random number, so that a run which is evaluated trains as one which is not.

    Args:
        rows: of the held-out split, as ``training_rows`` makes them.
        collate: rows to a batch, as in training.
        batch_size: rows in it.
        parser: tells thinking and answers apart.
        mix: names of the sources of ``dataset.mix``, whose losses are measured apart too.

    Attributes:
        names: what is measured, in the order of ``sums``.
    """

    def __init__(self, rows: Dataset, collate: Collate, batch_size: int, parser: Parser, mix: Sequence[str] = ()):
        self._rows, self._collate, self._size, self._parser = rows, collate, batch_size, parser
        self.names = [*PARTS, *(name for source in mix for name in of_source(source))]

    def sums(self, model: nn.Module, *, process: int, processes: int) -> torch.Tensor:
        """Sums over every ``processes``-th batch, from batch ``process`` on.

        Returns:
            float64 (names, 2): of all loss tokens, of the thinking's and of the answers', of all rows and of each
            source's, the cross entropies' sum in nats and their number. The marks around messages are neither thinking
            nor answer.
        """
        total = torch.zeros(len(self.names), 2, dtype=torch.float64)
        training = model.training
        model.eval()
        for first in range(0, len(self._rows), processes * self._size):
            start = first + process * self._size
            # Each process runs as often as the others: where weights are sharded, a pass takes all of them.
            own = range(start, min(start + self._size, len(self._rows))) or range(1)
            sums = self._of_batch(model, [self._rows[i] for i in own])
            if start < len(self._rows):
                total += sums
        model.train(training)
        return total

    def _of_batch(self, model: nn.Module, examples: list[dict[str, Any]]) -> torch.Tensor:
        parts = [_of_sources(_parts(example, self._parser), example, len(self.names)) for example in examples]
        batch, *of_parts = (
            self._collate([{**example, "labels": part[i]} for example, part in zip(examples, parts, strict=True)])
            for i in range(len(self.names))
        )
        losses, with_loss = gathering(model, token_losses)(batch)
        masks = [with_loss, *(part["labels"].flatten()[1:] != IGNORED for part in of_parts)]
        return torch.stack([torch.stack([losses[m[with_loss]].sum(), m.sum().double()]) for m in masks])


def losses_on(
    model: PreTrainedModel,
    tokens: Path,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    rows: Collection[int],
) -> dict[str, float]:
    """The mean losses of a whole model on some of the held-out rows, by name; those that are too long are left out.

    Args:
        tokens: parquet file of ``prepare``.
        rows: numbers of the source rows.
    """
    alone = config.model_copy(
        update={
            "sft": config.sft.model_copy(update={"packing": False}),
            "dataset": config.dataset.model_copy(update={"overlength": "drop"}),
        }
    )
    try:
        found, _ = training_rows(tokens, alone, vocab_size=config.model.architecture.vocab_size, split="heldout")
    except StageError:
        return {}  # all are too long
    asked = found.select([i for i, row in enumerate(found["rows"]) if int(row[0]) in rows])
    collate = Collator(cast(int, tokenizer.pad_token_id), packed=False)
    size = config.sft.rows_at_a_time
    heldout = HeldOut(asked, collate, size, parser_of(tokenizer), tuple(config.dataset.mix or ()))
    return means(heldout.sums(model, process=0, processes=1), heldout.names)


def means(sums: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """The mean losses by name, from sums of all processes; what has no tokens is left out."""
    return {name: float(total / count) for name, (total, count) in zip(names, sums, strict=True) if count}


def best_step(log_history: Sequence[dict[str, Any]]) -> int | None:
    """The step of the evaluation with the lowest loss, the first of equals; None before the first evaluation."""
    done = evaluations(log_history)
    return min(done, key=lambda log: log["eval_loss"])["step"] if done else None


def stops_early(log_history: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether ``patience`` evaluations have come since the one with the lowest loss."""
    since = [log for log in evaluations(log_history) if log["step"] > (best_step(log_history) or 0)]
    return patience is not None and len(since) >= patience


def evaluations(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a trainer's logs that an evaluation has left."""
    return [log for log in log_history if "eval_loss" in log]


def token_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross entropy of each token with loss, in nats.

    Returns:
        float64 (tokens with loss,), on the CPU; and bool (batch · length − 1,), which tokens of the flattened batch
        these are, from its second on.
    """
    labels = batch["labels"].flatten()[1:]
    with_loss = labels != IGNORED
    hidden = hidden_states(model, batch).flatten(0, 1)[:-1]
    chosen, targets = hidden[with_loss.to(hidden.device)], labels[with_loss].to(hidden.device)
    with torch.no_grad():
        losses = [
            cross_entropy(project(model, rows), wanted, reduction="none")
            for rows, wanted in zip(chosen.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        ]
    return torch.cat(losses).double().cpu(), with_loss


def gathering(model: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the model, bound to it; sharded weights are gathered around it as around ``forward``."""
    if method.__name__ not in model.__dict__:
        model.__dict__[method.__name__] = MethodType(method, model)
        if isinstance(model, FSDPModule):
            register_fsdp_forward_method(model, method.__name__)
    return model.__dict__[method.__name__]


@torch.no_grad()
def hidden_states(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """What the last layer leaves for each token, (batch, length, width)."""
    base: Any = bare_model(model)
    inputs = {
        name: value.to(base.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name not in NOT_FOR_THE_MODEL
    }
    return base.base_model(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def project(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (rows, vocabulary) in float32 of hidden states (rows, width)."""
    base: Any = bare_model(model)
    head = base.get_output_embeddings()
    return head(hidden.to(head.weight.dtype)).float()


def _of_sources(parts: Sequence[np.ndarray], example: dict[str, Any], count: int) -> list[np.ndarray]:
    """``parts`` of the whole row, and then of each source's documents in it, ``count`` in all."""
    found = list(parts)
    for source in range(count // len(parts) - 1):
        own = np.repeat(example["sources"] == source, example["seq_lengths"])
        found += [np.where(own, part, IGNORED) for part in parts]
    return found


def _parts(example: dict[str, Any], parser: Parser) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (length,) of all loss tokens, of the thinking's and of the answers', as the model's format has them."""
    labels = example["labels"]
    thinking, answer = np.full_like(labels, IGNORED), np.full_like(labels, IGNORED)
    ends = np.cumsum(example["seq_lengths"])
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        found = parser.parts(np.asarray(example["input_ids"][start:end]), np.asarray(labels[start:end]))
        for kind, parts in zip((thinking, answer), found, strict=True):
            for part in parts:
                kind[start:end][part] = labels[start:end][part]
    return labels, thinking, answer
