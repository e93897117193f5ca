"""The attention implementation ``ftkit_sinks``: attention sinks, windows and packed documents by stock flash attention.

A sink is one more key, of score s, whose value is zero. From flash attention's output O and lse = log Σ e^score, both
without it, O' = O · σ(lse − s) and lse' = log(e^lse + e^s) are what a softmax over all scores and the sink gives. The
stock backward, handed O' and lse', then returns exact gradients of queries, keys and values: it needs no more of the
forward than the probabilities e^(score − lse') and rowsum(dO · O'), and the sink's own row adds to neither gradient.
That of the sink is −Σ e^(s − lse') (dO · O').

Documents lie end to end in one row; ``cu_seq_lens_q`` (documents + 1,) gives their bounds.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from ftkit.models.flash import FlashCall
from ftkit.models.varlen import computed_in, end_to_end, no_mask, plain_attention, refuse_masks

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
        from ftkit.models.kernels import attention as kernels

        queries, keys = heads
        rotated, both = torch.empty_like(qkv), queries + keys
        kernels.rotate(qkv[:, :both], rotated[:, :both], cos, sin)
        kernels.rotate(qkv[:, both:], rotated[:, both:], cos, sin, plain=True)
        call = FlashCall(bounds, longest, window, qkv.shape[-1] ** -0.5)
        q, k, v = rotated.split([queries, keys, keys], 1)
        o, lse, *random = call.forward(q, k, v)
        o, lse = kernels.apply_sinks(o, lse, sinks)
        ctx.save_for_backward(rotated, cos, sin, sinks, bounds, o, lse, *random)
        ctx.settings = (heads, longest, window, call.scale)
        return o.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        from ftkit.models.kernels import attention as kernels

        rotated, cos, sin, sinks, bounds, o, lse, *random = ctx.saved_tensors
        (queries, keys), *settings = ctx.settings
        gradient = gradients[0].contiguous().view_as(o)
        call = FlashCall(bounds, *settings)
        q, k, v = rotated.split([queries, keys, keys], 1)
        dq, dk, dv = call.backward(gradient, q, k, v, o, lse, *random)
        dqkv = torch.empty_like(rotated)
        kernels.rotate(dq, dqkv[:, :queries], cos, sin, back=True)
        kernels.rotate(dk, dqkv[:, queries : queries + keys], cos, sin, back=True)
        kernels.rotate(dv, dqkv[:, queries + keys :], cos, sin, plain=True)
        dsinks = sinks_gradient(gradient, o, lse, sinks) if ctx.needs_input_grad[3] else None
        return dqkv, None, None, dsinks, None, None, None, None


class RotatedSinkAttention(torch.autograd.Function):
    """``apply(q, k, v, sinks, bounds, longest, window, scale)`` → (tokens, query heads, head_dim).

    Likewise after the rotary embedding: q is (tokens, query heads, head_dim), k and v (tokens, key heads, head_dim).
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, bounds: Tensor, longest: int, window: int | None,
        scale: float,
    ) -> Tensor:  # fmt: skip
        from ftkit.models.kernels import attention as kernels

        o, lse, *random = FlashCall(bounds, longest, window, scale).forward(q, k, v)
        o, lse = kernels.apply_sinks(o, lse, sinks)
        ctx.save_for_backward(q, k, v, sinks, bounds, o, lse, *random)
        ctx.settings = (longest, window, scale)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, sinks, bounds, o, lse, *random = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        call = FlashCall(bounds, *ctx.settings)
        dq, dk, dv = call.backward(gradient, q, k, v, o, lse, *random)
        dsinks = sinks_gradient(gradient, o, lse, sinks) if ctx.needs_input_grad[3] else None
        return dq, dk, dv, dsinks, None, None, None, None


def sinks_gradient(gradient: Tensor, o: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """(heads,) from those of o (tokens, heads, head_dim) and lse (heads, tokens), both with sinks."""
    along = (gradient.float() * o.float()).sum(-1)
    return -(torch.exp(sinks.float()[:, None] - lse) * along.t()).sum(1).to(sinks.dtype)


def flash_takes(device: torch.device, head_dim: int) -> bool:
    """Whether torch's flash attention, in bfloat16, and the kernel for sinks run there with heads of this width."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return ampere and not head_dim & (head_dim - 1) and find_spec("triton") is not None


def sink_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    sliding_window: int | None = None, s_aux: Tensor, cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention function of transformers' interface: by flash attention, or where that can't be had in plain torch.

    Args:
        query: (1, heads, tokens, head_dim), rotated; key and value with fewer heads.
        attention_mask: none: documents are told apart by ``cu_seq_lens_q``.
        sliding_window: keys that a token sees, itself among them; None: all before it.
        s_aux: (heads,), sinks.
        cu_seq_lens_q: (documents + 1,), bounds of the documents; one document a row if not given.
        max_length_q: tokens of the longest document.

    Returns:
        (1, tokens, heads, head_dim).

    Raises:
        ValueError: there is a mask, or more than one row with bounds.
    """
    refuse_masks(NAME, query, attention_mask, cu_seq_lens_q)
    if computed_in(query) != torch.bfloat16 or not flash_takes(query.device, query.shape[-1]):
        return plain_attention(query, key, value, scaling, sliding_window, s_aux, cu_seq_lens_q), None
    q, k, v, bounds = end_to_end(query, key, value, cu_seq_lens_q)
    o = RotatedSinkAttention.apply(q, k, v, s_aux, bounds, max_length_q or query.shape[2], sliding_window, scaling)
    assert isinstance(o, Tensor)
    return o.view(query.transpose(1, 2).shape), None


AttentionInterface.register(NAME, sink_attention)
AttentionMaskInterface.register(NAME, no_mask)
