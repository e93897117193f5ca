"""Packed documents by stock flash attention: attention ``ftkit_varlen``, and what ``ftkit_sinks`` builds on.

Documents lie end to end in one row; ``cu_seq_lens_q`` (documents + 1,) gives their bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from ftkit.models.flash import FlashCall

NAME = "ftkit_varlen"
LARGEST_HEAD = 256


class VarlenAttention(torch.autograd.Function):
    """``apply(q, k, v, bounds, longest, window, scale)`` → (tokens, query heads, head_dim).

    q is (tokens, query heads, head_dim), rotated, k and v (tokens, key heads, head_dim), all in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, window: int | None, scale: float
    ) -> Tensor:
        o, lse, *random = FlashCall(bounds, longest, window, scale).forward(q, k, v)
        ctx.save_for_backward(q, k, v, bounds, o, lse, *random)
        ctx.settings = (longest, window, scale)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, bounds, o, lse, *random = ctx.saved_tensors
        call = FlashCall(bounds, *ctx.settings)
        return *call.backward(gradients[0].contiguous(), q, k, v, o, lse, *random), None, None, None, None


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    sliding_window: int | None = None, cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention function of transformers' interface: by flash attention, or where that can't be had in plain torch.

    Args:
        query: (rows, heads, tokens, head_dim), rotated; key and value with fewer heads.
        attention_mask: none: documents are told apart by ``cu_seq_lens_q``.
        sliding_window: keys that a token sees, itself among them; None: all before it.
        cu_seq_lens_q: (documents + 1,), bounds of the documents; one document a row if not given.
        max_length_q: tokens of the longest document.

    Returns:
        (rows, tokens, heads, head_dim).

    Raises:
        ValueError: there is a mask, or more than one row with bounds.
    """
    refuse_masks(NAME, query, attention_mask, cu_seq_lens_q)
    if computed_in(query) != torch.bfloat16 or not flash_is_there(query.device, query.shape[-1]):
        return plain_attention(query, key, value, scaling, sliding_window, None, cu_seq_lens_q), None
    q, k, v, bounds = end_to_end(query, key, value, cu_seq_lens_q)
    o = VarlenAttention.apply(q, k, v, bounds, max_length_q or query.shape[2], sliding_window, scaling)
    assert isinstance(o, Tensor)
    return o.view(query.transpose(1, 2).shape), None


def refuse_masks(name: str, query: Tensor, attention_mask: Tensor | None, bounds: Tensor | None) -> None:
    """See to it that documents are told apart by their bounds alone.

    Raises:
        ValueError: there is a mask, or more than one row with bounds.
    """
    if attention_mask is not None or (bounds is not None and len(query) > 1):
        raise ValueError(f"{name} takes documents end to end in one row, with cu_seq_lens_q and without a mask")


def end_to_end(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor | None) -> tuple[Tensor, ...]:
    """Queries, keys and values as (tokens, heads, head_dim) in bfloat16, and the bounds: one document a row if None."""
    rows, _, length, width = query.shape
    if bounds is None:
        bounds = torch.arange(rows + 1, device=query.device, dtype=torch.int32) * length
    laid = (t.transpose(1, 2).reshape(rows * length, -1, width).bfloat16() for t in (query, key, value))
    return *laid, bounds


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, sinks: Tensor | None,
    bounds: Tensor | None,
) -> Tensor:  # fmt: skip
    """The same in plain torch: scores of one document at a time; ``sinks`` (heads,) or None, the rest as above."""
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    sizes = [length] if bounds is None else bounds.diff().tolist()
    outputs = []
    for q, k, v in zip(*(t.split(sizes, 2) for t in (query, key, value)), strict=True):
        scores = q @ k.repeat_interleave(repeats, 1).transpose(2, 3) * scale
        apart = torch.arange(q.shape[2], device=q.device)
        apart = apart[:, None] - apart[None, :]
        scores = scores.masked_fill((apart < 0) | (apart >= (window or length)), float("-inf"))
        if sinks is not None:
            sink = sinks.to(scores.dtype)[None, :, None, None].expand(len(q), -1, q.shape[2], 1)
            scores = torch.cat([scores, sink], -1)
        shares = scores.softmax(-1, dtype=torch.float32).to(v.dtype)[..., : q.shape[2]]
        outputs.append(shares @ v.repeat_interleave(repeats, 1))
    return torch.cat(outputs, 2).transpose(1, 2)


def computed_in(query: Tensor) -> torch.dtype:
    """The dtype that products are computed in here, under autocast or not."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def flash_is_there(device: torch.device, head_dim: int) -> bool:
    """Whether torch's flash attention runs there in bfloat16 with heads of this width."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return ampere and head_dim % 8 == 0 and head_dim <= LARGEST_HEAD


def no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """The mask function beside it: documents are kept apart by their bounds, and there is no padding to hide.

    Raises:
        ValueError: there is padding.
    """
    if attention_mask is not None:
        raise ValueError("documents lie end to end here, with cu_seq_lens_q: there is no place for an attention_mask")


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, no_mask)
