"""Calibration: the weights that stay in bfloat16 learn what rounding the experts to MXFP4 has lost.

Published expert weights lie on MXFP4's grid, and what LoRA adds to one is far below half a step: nearest rounding takes
it back. Attention, norms and the experts' biases stay in bfloat16. They are trained for some hundred steps to make the
rounded model's logits those of the merged one, on training rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

ROWS, TOKENS = 512, 512
"""Most rows to calibrate on, and most tokens of each: 2,880 wide, their targets take 1.4 GiB of the host."""

BATCH = 8
"""Rows in a step."""

RATE, WIDTH = 1e-3, 128
"""Learning rate that was best at this hidden size; it falls with the square root of the size."""

LOST = 0.08
"""What rounding has to have changed in the logits, as a share of their size, for the whole rate. Below it the rate
falls in proportion, as does what has to be learnt."""

LAST, WARM_UP = 0.02, 10
"""Share of the rate at the end of its linear decay, and steps until it is reached."""

LEARNS = (".self_attn.", "_proj_bias", "norm.weight")
"""Parts of the names of what is trained: attention with its sinks, experts' biases, norms."""

_CHUNK = 16384  # rows of the vocabulary that are in float32 at a time


@torch.no_grad()
def targets(model: PreTrainedModel, rows: list[list[int]]) -> list[Tensor]:
    """What the vocabulary projection of the merged model gets for each row: (tokens, hidden), on the CPU."""
    found: list[Tensor] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        hidden = _hidden(model, batch).cpu()
        found += [hidden[i, : len(row)].clone() for i, row in enumerate(batch)]
    return found


def calibrate(model: PreTrainedModel, rows: list[list[int]], wanted: list[Tensor], steps: int) -> None:
    """Train what stays dense, in place, until the logits of the rounded model are near those wanted.

    The loss is the mean squared difference of all logits of all tokens, by way of the vocabulary projection's Gram
    matrix: no logit is computed. Adam keeps float32 copies of the weights that it moves.

    Args:
        model: with rounded experts. On a CPU it computes in float32 meanwhile.
        rows: token ids.
        wanted: ``targets`` of the same rows, before rounding.
        steps: optimiser steps.
    """
    dtype, device = model.dtype, model.device
    if device.type == "cpu":
        model.float()
    gram = _gram(model.get_output_embeddings())
    learning = list(_learning(model))
    copies = [weight.detach().float().clone() for weight in learning]
    rate = RATE * (WIDTH / model.config.hidden_size) ** 0.5
    rate *= min(1.0, _lost(model, rows, wanted, gram) / LOST)
    optimizer = torch.optim.Adam(copies, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * max(LAST, 1 - step / steps)
    )
    model.train()  # layers are recomputed in training alone; no family with MXFP4 has dropout
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for batch in _batches(len(rows), steps):
        off, aims = _off(model, [rows[i] for i in batch], [wanted[i] for i in batch])
        loss = ((off @ gram) * off).sum() / len(aims)
        for copy, gradient in zip(copies, torch.autograd.grad(loss, learning), strict=True):
            copy.grad = gradient.float()
        nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for weight, copy in zip(learning, copies, strict=True):
                weight.copy_(copy)
    model.gradient_checkpointing_disable()
    model.eval().requires_grad_(False)
    if dtype == torch.bfloat16:
        model.bfloat16()


def _off(model: PreTrainedModel, rows: list[list[int]], wanted: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What all tokens of the rows get, less what they should get, and the latter: (tokens, hidden), float32."""
    hidden, aims = _hidden(model, rows), torch.cat(wanted).to(model.device).float()
    return torch.cat([hidden[i, : len(row)] for i, row in enumerate(rows)]).float() - aims, aims


@torch.no_grad()
def _lost(model: PreTrainedModel, rows: list[list[int]], wanted: list[Tensor], gram: Tensor) -> float:
    """Root mean square of what rounding has changed in the logits of a batch, as a share of theirs."""
    off, aims = _off(model, rows[:BATCH], wanted[:BATCH])
    return (((off @ gram) * off).sum() / ((aims @ gram) * aims).sum()).sqrt().item()


def _learning(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Mark what is trained, and nothing else, as such."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(any(part in name for part in LEARNS))
        if weight.requires_grad:
            yield weight


def _batches(rows: int, steps: int) -> Iterator[list[int]]:
    """``BATCH`` rows a step, every row once before any comes again, in an order that is always the same."""
    rng, left = random.Random(0), list[int]()
    for _ in range(steps):
        while len(left) < min(BATCH, rows):
            left += rng.sample(range(rows), rows)
        yield [left.pop() for _ in range(min(BATCH, rows))]


def _hidden(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """(rows, longest, hidden) after the last norm. Padding follows a row, where no token of it looks."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(model.device)
    backbone: Any = model.base_model
    return backbone(input_ids=ids, use_cache=False).last_hidden_state


@torch.no_grad()
def _gram(head: Any) -> Tensor:
    """(hidden, hidden), float32: Wᵀ · W ÷ vocabulary, for a loss that is a mean over the vocabulary."""
    weight: Tensor = head.weight
    gram = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)
    for part in weight.split(_CHUNK):
        gram.addmm_(part.float().t(), part.float())
    return gram / len(weight)
