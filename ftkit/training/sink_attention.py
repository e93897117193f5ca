"""The attention implementation ``ftkit_sinks``: attention sinks, windows and packed documents by stock flash attention.

A sink is one more key, of score s, whose value is zero. From flash attention's output O and lse = log Σ e^score, both
without it, O' = O · σ(lse − s) and lse' = log(e^lse + e^s) are what a softmax over all scores and the sink gives. The
stock backward, handed O' and lse', then returns exact gradients of queries, keys and values: it needs no more of the
forward than the probabilities e^(score − lse') and rowsum(dO · O'), and the sink's own row adds to neither gradient.
That of the sink is −Σ e^(s − lse') (dO · O').

Documents lie end to end in one row; ``cu_seq_lens_q`` (documents + 1,) gives their bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "ftkit_sinks"


class SinkAttention(torch.autograd.Function):
    """``apply(qkv, cos, sin, sinks, bounds, longest, window, heads)`` → (tokens, query heads · head_dim).

    qkv is (tokens, query heads + 2 · key heads, head_dim) in bfloat16, before the rotary embedding; cos and sin
    (tokens, head_dim / 2), sinks (query heads,), bounds (documents + 1,) int32; heads are those of queries and of keys;
    window counts the token itself, None sees the whole document.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, sinks: Tensor, bounds: Tensor, longest: int,
        window: int | None, heads: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        from ftkit.training import layer_kernels as kernels

        queries, keys = heads
        rotated, both = torch.empty_like(qkv), queries + keys
        kernels.rotate(qkv[:, :both], rotated[:, :both], cos, sin)
        kernels.rotate(qkv[:, both:], rotated[:, both:], cos, sin, plain=True)
        q, k, v = rotated.split([queries, keys, keys], 1)
        scale, left, right = qkv.shape[-1] ** -0.5, *((window - 1, 0) if window else (None, None))
        o, lse, seed, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, 0.0, True, False,
            scale=scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        o, lse = kernels.apply_sinks(o, lse, sinks)
        ctx.save_for_backward(rotated, o, lse, cos, sin, sinks, bounds, seed, unused)
        ctx.settings = (heads, longest, scale, left, right)
        return o.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        from ftkit.training import layer_kernels as kernels

        rotated, o, lse, cos, sin, sinks, bounds, seed, unused = ctx.saved_tensors
        (queries, keys), longest, scale, left, right = ctx.settings
        q, k, v = rotated.split([queries, keys, keys], 1)
        gradient = gradients[0].contiguous().view_as(o)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            gradient, q, k, v, o, lse, bounds, bounds, longest, longest, 0.0, True, seed, unused,
            scale=scale, window_size_left=left, window_size_right=right,
        )  # fmt: skip
        dqkv = torch.empty_like(rotated)
        kernels.rotate(dq, dqkv[:, :queries], cos, sin, back=True)
        kernels.rotate(dk, dqkv[:, queries : queries + keys], cos, sin, back=True)
        kernels.rotate(dv, dqkv[:, queries + keys :], cos, sin, plain=True)
        dsinks = None
        if ctx.needs_input_grad[3]:
            along = (gradient.float() * o.float()).sum(-1)  # (tokens, heads)
            dsinks = -(torch.exp(sinks.float()[:, None] - lse) * along.t()).sum(1).to(sinks.dtype)
        return dqkv, None, None, dsinks, None, None, None, None


def sink_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    sliding_window: int | None = None, s_aux: Tensor, cu_seq_lens_q: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention function of transformers' interface, in plain torch: scores of one document at a time.

    Args:
        query: (1, heads, tokens, head_dim), rotated; key and value with fewer heads.
        attention_mask: none: documents are told apart by ``cu_seq_lens_q``.
        sliding_window: keys that a token sees, itself among them; None: all before it.
        s_aux: (heads,), sinks.
        cu_seq_lens_q: (documents + 1,), bounds of the documents; one document if not given.

    Returns:
        (1, tokens, heads, head_dim).

    Raises:
        ValueError: there is a mask, or more than one row with bounds.
    """
    if attention_mask is not None or (cu_seq_lens_q is not None and len(query) > 1):
        raise ValueError(f"{NAME} takes documents end to end in one row, with cu_seq_lens_q and without a mask")
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    sizes = [length] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    outputs = []
    for q, k, v in zip(*(t.split(sizes, 2) for t in (query, key, value)), strict=True):
        scores = q @ k.repeat_interleave(repeats, 1).transpose(2, 3) * scaling
        apart = torch.arange(q.shape[2], device=q.device)
        apart = apart[:, None] - apart[None, :]
        hidden = (apart < 0) | (apart >= (sliding_window or length))
        sinks = s_aux.to(scores.dtype)[None, :, None, None].expand(len(q), -1, q.shape[2], 1)
        scores = torch.cat([scores.masked_fill(hidden, float("-inf")), sinks], -1)
        shares = scores.softmax(-1, dtype=torch.float32).to(v.dtype)[..., :-1]
        outputs.append(shares @ v.repeat_interleave(repeats, 1))
    return torch.cat(outputs, 2).transpose(1, 2), None


def _no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Documents are kept apart by their bounds, and there is no padding to hide."""
    if attention_mask is not None:
        raise ValueError(f"{NAME} takes no attention_mask: its documents lie end to end, with cu_seq_lens_q")


AttentionInterface.register(NAME, sink_attention)
AttentionMaskInterface.register(NAME, _no_mask)
