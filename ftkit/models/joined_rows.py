"""TRL's log-probabilities on rows that lie end to end, as ftkit's attention takes them."""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

MULTIPLE_OF = 64
"""Rows are joined to a multiple of so many tokens, for the matrix units."""
IGNORED = -100


def join_rows(model: nn.Module) -> None:
    """Compute TRL's log-probabilities with the rows of a batch end to end, as ftkit's attention takes them.

    ``model(input_ids=, attention_mask=, labels=, fused_lm_head=True)`` gives what it gave, (rows, length − 1), and pays
    for no padding.

    Args:
        model: bare causal model with TRL's fused head.
    """
    before = model.forward

    @wraps(before)  # generate holds what it is given against the signature
    def forward(
        self: nn.Module, *args: Any, fused_lm_head: bool = False, input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if not fused_lm_head or input_ids is None or attention_mask is None or labels is None:
            there = {name: value for name, value in given.items() if value is not None}
            return before(*args, **there, **kwargs, **({"fused_lm_head": True} if fused_lm_head else {}))
        joined, mask = joined_rows(input_ids, attention_mask.bool(), labels), attention_mask.bool()
        found = before(**joined, **kwargs, fused_lm_head=True)
        for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
            if (values := getattr(found, name)) is not None:
                setattr(found, name, parted(values, mask))
        return found

    model.__dict__["forward"] = MethodType(forward, model)


def joined_rows(ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Any]:
    """Rows (rows, length) without their padding as one, with the bounds of each as ``JoiningCollator`` gives them."""
    sizes = mask.sum(1)
    tokens = int(sizes.sum())
    spare = -tokens % MULTIPLE_OF
    bounds = torch.cat([sizes, sizes.new_tensor([spare])] if spare else [sizes]).cumsum(0)
    starts = nn.functional.pad(bounds, (1, 0)).int()
    first = mask & (mask.cumsum(1) == 1)
    labels = labels.masked_fill(first, IGNORED)  # nothing comes before a row's first token that could predict it
    positions = torch.arange(tokens + spare, device=ids.device) - starts[:-1].long().repeat_interleave(starts.diff())
    return {
        "input_ids": nn.functional.pad(ids[mask], (0, spare))[None],
        "labels": nn.functional.pad(labels[mask], (0, spare), value=IGNORED)[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": starts,
        "max_length_q": int(starts.diff().max()),
    }


def parted(values: Tensor, mask: Tensor) -> Tensor:
    """What joined rows have for each token but the first, (1, tokens − 1), in rows again, (rows, length − 1).

    Args:
        mask: bool (rows, length), which tokens are no padding, wherever they lie.
    """
    first = values.new_zeros(1)
    tokens = torch.cat([first, values[0]])[: int(mask.sum())]
    return values.new_zeros(mask.shape).masked_scatter(mask, tokens)[:, 1:]
