"""Attention of queries and keys that are normed, where the family has it, and rotated on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftkit.models.flash import FlashCall
from ftkit.models.kernels import heads as kernels


class RotaryAttention(torch.autograd.Function):
    """``apply(qkv, cos, sin, q weight, k weight, eps, bounds, longest, window, scale, heads)`` → (tokens, out).

    qkv is (tokens, query heads + 2 · key heads, head_dim) in bfloat16, cos and sin (tokens, ≥ head_dim / 2). The
    weights are those of the norms of queries and keys, (head_dim,) and frozen, or None. bounds is (documents + 1,)
    int32; window counts the token itself, None sees the whole document; heads are those of queries and of keys; out is
    query heads · head_dim. Rotated queries and keys are made again for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
        bounds: Tensor, longest: int, window: int | None, scale: float, heads: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        ctx.settings = (eps, longest, window, scale, heads)
        q, k = _turned(qkv, cos, sin, q_weight, k_weight, eps, heads)
        o, lse, *random = FlashCall(bounds, longest, window, scale).forward(q, k, qkv[:, sum(heads) :])
        ctx.save_for_backward(qkv, cos, sin, q_weight, k_weight, bounds, o, lse, *random)
        return o.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        qkv, cos, sin, q_weight, k_weight, bounds, o, lse, *random = ctx.saved_tensors
        eps, longest, window, scale, heads = ctx.settings
        q, k = _turned(qkv, cos, sin, q_weight, k_weight, eps, heads)
        gradient = gradients[0].contiguous().view_as(o)
        call, v = FlashCall(bounds, longest, window, scale), qkv[:, sum(heads) :]
        dq, dk, dv = call.backward(gradient, q, k, v, o, lse, *random)
        dqkv = torch.empty_like(qkv)
        of_q, of_k = slice(0, heads[0]), slice(heads[0], sum(heads))
        kernels.turn_backward(dq, qkv[:, of_q], dqkv[:, of_q], q_weight, cos, sin, eps)
        kernels.turn_backward(dk, qkv[:, of_k], dqkv[:, of_k], k_weight, cos, sin, eps)
        dqkv[:, sum(heads) :] = dv
        return dqkv, *(None,) * 10


def _turned(
    qkv: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    heads: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    queries, keys = heads
    q, k = (qkv.new_empty(len(qkv), count, qkv.shape[-1]) for count in heads)
    kernels.turn(qkv[:, :queries], q, q_weight, cos, sin, eps)
    kernels.turn(qkv[:, queries : queries + keys], k, k_weight, cos, sin, eps)
    return q, k
