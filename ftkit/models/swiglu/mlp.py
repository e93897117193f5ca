"""An MLP with SwiGLU and LoRA that keeps gate and up alone for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftkit.models.fused.layers import JoinedProjection, in_backward
from ftkit.models.kernels.swiglu import swiglu, swiglu_backward


class SwigluMlp(torch.autograd.Function):
    """``apply(x, W, A, B, V, C, D)`` → (tokens, hidden).

    y = aVᵀ + (aCᵀ)Dᵀ with a = up · silu(gate) and [gate, up] = xWᵀ + (xAᵀ)Bᵀ.

    x is (tokens, hidden), W (2 · I, hidden), V (hidden, I), both frozen; the adapters A (r, hidden), B (2 · I, r),
    C (s, I) and D (hidden, s), scales included, are of x's dtype; A and B, or C and D, may be None.

    A replay for checkpointing leaves out the product with V: nobody reads the output.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up_weight: Tensor, up_a: Tensor | None, up_b: Tensor | None, down_weight: Tensor,
        down_a: Tensor | None, down_b: Tensor | None,
    ) -> Tensor:  # fmt: skip
        h, up_thin = _adapted(x, up_weight, up_a, up_b)
        act = swiglu(h)
        if in_backward():
            y, down_thin = torch.empty_like(x), None if down_a is None else act @ down_a.t()
        else:
            y, down_thin = _adapted(act, down_weight, down_a, down_b)
        ctx.save_for_backward(
            None if up_a is None else x, h, up_weight, up_a, up_b, up_thin, down_weight, down_a, down_b, down_thin
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, h, up_weight, up_a, up_b, up_thin, down_weight, down_a, down_b, down_thin = ctx.saved_tensors
        dy = gradients[0].contiguous()
        act, dthin = _back(dy, down_weight, down_a, down_b)
        swiglu_backward(h, act)
        ddown = (None, None) if dthin is None else (dthin.t() @ act, dy.t() @ down_thin)
        del act
        dx, dthin = _back(h, up_weight, up_a, up_b)
        dup = (None, None) if dthin is None else (dthin.t() @ x, h.t() @ up_thin)
        return dx, None, *dup, None, *ddown


def _adapted(x: Tensor, weight: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x · weightᵀ + (x · aᵀ) · bᵀ, and x · aᵀ."""
    y = x @ weight.t()
    if a is None or b is None:
        return y, None
    thin = x @ a.t()
    return y.addmm_(thin, b.t()), thin


def _back(gradient: Tensor, weight: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of x · aᵀ."""
    dx = gradient @ weight
    if a is None or b is None:
        return dx, None
    dthin = gradient @ b
    return dx.addmm_(dthin, a), dthin


class FusedMlp:
    """A family's MLP, whose modules hold the weights and adapters.

    Args:
        module: with ``gate_proj``, ``up_proj`` and ``down_proj`` without biases, adapted by PEFT or not.
    """

    def __init__(self, module: Any):
        self._up, self._down = (
            JoinedProjection([module.gate_proj, module.up_proj]),
            JoinedProjection([module.down_proj]),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, hidden) → the same."""
        up, down = self._up.factors(x.dtype), self._down.factors(x.dtype)
        y = SwigluMlp.apply(x, self._up.weight, *up, self._down.weight, *down)
        assert isinstance(y, Tensor)
        return y
