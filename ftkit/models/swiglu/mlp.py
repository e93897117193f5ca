"""An MLP with SwiGLU and LoRA that keeps gate and up alone for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftkit.models.fused.fp8_linear import Fp8Linear
from ftkit.models.fused.layers import JoinedProjection, adapted, adapted_back, in_backward
from ftkit.models.kernels.fp8 import Quantized
from ftkit.models.kernels.swiglu import swiglu, swiglu_backward


class SwigluMlp(torch.autograd.Function):
    """``apply(x, x8, W, A, B, V, C, D)`` → (tokens, hidden).

    y = aVᵀ + (aCᵀ)Dᵀ with a = up · silu(gate) and [gate, up] = xWᵀ + (xAᵀ)Bᵀ.

    x is (tokens, hidden), W (2 · I, hidden), V (hidden, I), both frozen, or both in FP8, for which x8 may be x in E4M3,
    or None; the adapters A (r, hidden),
    B (2 · I, r), C (s, I) and D (hidden, s), scales included, are of x's dtype; A and B, or C and D, may be None.

    A replay for checkpointing leaves out the product with V: nobody reads the output.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x8: Quantized | None, up_weight: Tensor | Fp8Linear, up_a: Tensor | None,
        up_b: Tensor | None, down_weight: Tensor | Fp8Linear, down_a: Tensor | None, down_b: Tensor | None,
    ) -> Tensor:  # fmt: skip
        h, up_thin = adapted(x, x8, up_weight, None, up_a, up_b)
        act, act8 = swiglu(h, fp8=isinstance(down_weight, Fp8Linear))
        if in_backward():
            y, down_thin = torch.empty_like(x), None if down_a is None else act @ down_a.t()
        else:
            y, down_thin = adapted(act, act8, down_weight, None, down_a, down_b)
        ctx.save_for_backward(None if up_a is None else x, h, up_a, up_b, up_thin, down_a, down_b, down_thin)
        ctx.weights = up_weight, down_weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, h, up_a, up_b, up_thin, down_a, down_b, down_thin = ctx.saved_tensors
        dy, (up_weight, down_weight) = gradients[0].contiguous(), ctx.weights
        dthin = None if down_b is None else dy @ down_b
        act = adapted_back(dy, None, down_weight, down_a, dthin)
        h8 = swiglu_backward(h, act, fp8=isinstance(up_weight, Fp8Linear))
        ddown = (None, None) if dthin is None else (dthin.t() @ act, dy.t() @ down_thin)
        del act
        dthin = None if up_b is None else h @ up_b
        dx = adapted_back(h, h8, up_weight, up_a, dthin)
        dup = (None, None) if dthin is None else (dthin.t() @ x, h.t() @ up_thin)
        return dx, None, None, *dup, None, *ddown


def mlp(up: JoinedProjection, down: JoinedProjection, x: Tensor, x8: Quantized | None) -> Tensor:
    """(tokens, hidden) → the same, by gate and up, and by down, none of which has biases."""
    y = SwigluMlp.apply(x, x8, up.weight, *up.factors(x.dtype), down.weight, *down.factors(x.dtype))
    assert isinstance(y, Tensor)
    return y
