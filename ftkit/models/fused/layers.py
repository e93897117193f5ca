"""Norms beside the residual sum and adapted projections, for fused layers of any family."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer

from ftkit.models.kernels.norms import add_rms_norm, rms_norm, rms_norm_backward

CHECKPOINTS_IN_CALL = "__call__" in GradientCheckpointingLayer.__dict__
"""Whether transformers checkpoints around a layer's forward (5.17) or inside that of its class (5.23), which an
instance's own forward takes the place of."""


class AddNorm(torch.autograd.Function):
    """``apply(x, delta, weight, eps)`` → x + delta, and its RMS norm; ``weight`` is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total, y = add_rms_norm(x.contiguous(), delta.contiguous(), weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dtotal, dy = (gradient.contiguous() for gradient in gradients)
        total, weight = ctx.saved_tensors
        dx = rms_norm_backward(total, weight, dy, dtotal, ctx.eps)
        return dx, dx, None, None


class Norm(torch.autograd.Function):
    """``apply(x, weight, eps)`` → x itself, and its RMS norm; the gradients of both are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return x.view_as(x), rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dx, dy = (gradient.contiguous() for gradient in gradients)
        x, weight = ctx.saved_tensors
        return rms_norm_backward(x, weight, dy, dx, ctx.eps), None, None


class Projection(torch.autograd.Function):
    """``apply(x, weight, bias, A, B)`` → x · weightᵀ + bias + (x · Aᵀ) · Bᵀ; weight and bias are frozen.

    x is (tokens, in), A (r, in) and B (out, r), scale included, all of the same dtype; bias, or A and B, may be None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> Tensor:  # fmt: skip
        y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        thin = None
        if a is not None and b is not None:
            thin = x @ a.t()
            y.addmm_(thin, b.t())
        ctx.save_for_backward(x if a is not None else None, weight, a, b, thin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (dy,), (x, weight, a, b, thin) = gradients, ctx.saved_tensors
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        if a is None:
            return dx, None, None, None, None
        dthin = dy @ b
        if dx is not None:
            dx.addmm_(dthin, a)
        return dx, None, None, dthin.t() @ x, dy.t() @ thin


class JoinedProjection:
    """Linear modules with a common input as one product; their weights become views of one tensor.

    Args:
        modules: ``nn.Linear`` or PEFT's wrapper of one, without dropout.
    """

    def __init__(self, modules: list[Any]):
        self._modules = modules
        bases: list[Any] = [module.get_base_layer() if isinstance(module, LoraLinear) else module for module in modules]
        self.weight, self.bias = bases[0].weight.data, None if bases[0].bias is None else bases[0].bias.data
        self._sizes = [base.weight.shape[0] for base in bases]
        if len(bases) > 1:
            self.weight = self._joined([base.weight for base in bases])
            self.bias = None if self.bias is None else self._joined([base.bias for base in bases])

    def _joined(self, parameters: list[Tensor]) -> Tensor:
        """All of them in one, of which they become views."""
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, whole.split(self._sizes), strict=True):
            parameter.data = part
        return whole

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) → (tokens, all outputs)."""
        result = Projection.apply(x, self.weight, self.bias, *self.factors(x.dtype))
        assert isinstance(result, Tensor)
        return result

    def factors(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """A of all modules one below the other, and the scaled B of each beside zeros."""
        a, b = [], []
        for module, size in zip(self._modules, self._sizes, strict=True):
            adapted = isinstance(module, LoraLinear) and not module.disable_adapters and not module.merged
            if adapted:
                (name,) = module.active_adapters
                a.append(module.lora_A[name].weight)
                b.append(module.lora_B[name].weight * module.scaling[name])
            else:
                b.append(self.weight.new_zeros(size, 0, dtype=torch.float32))
        if not a:
            return None, None
        return torch.cat(a).to(dtype), torch.block_diag(*b).to(dtype)


def in_backward() -> bool:
    """Whether autograd computes gradients: a forward pass in it is a replay for checkpointing."""
    return torch._C._current_graph_task_id() != -1
