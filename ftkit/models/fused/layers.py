"""Norms beside the residual sum and adapted projections, for fused layers of any family."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer

from ftkit.models.fused.fp8_linear import Fp8Linear, Rounding
from ftkit.models.kernels.fp8 import Quantized
from ftkit.models.kernels.norms import add_rms_norm, rms_norm, rms_norm_backward

CHECKPOINTS_IN_CALL = "__call__" in GradientCheckpointingLayer.__dict__
"""Whether transformers checkpoints around a layer's forward (5.17) or inside that of its class (5.23), which an
instance's own forward takes the place of."""


class AddNorm(torch.autograd.Function):
    """``apply(x, delta, weight, eps, fp8)`` → x + delta, its RMS norm, and with ``fp8`` that in E4M3, else None.

    ``weight`` is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float, fp8: bool
    ) -> tuple[Tensor, Tensor, Quantized | None]:  # fmt: skip
        total, y, y8 = add_rms_norm(x.contiguous(), delta.contiguous(), weight, eps, fp8=fp8)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return total, y, y8

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dtotal, dy = (gradient.contiguous() for gradient in gradients[:2])
        total, weight = ctx.saved_tensors
        dx = rms_norm_backward(total, weight, dy, dtotal, ctx.eps)
        return dx, dx, None, None, None


class Norm(torch.autograd.Function):
    """``apply(x, weight, eps, fp8)`` → x itself, and its RMS norm as ``AddNorm`` has it.

    The gradients of both are added in one pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, fp8: bool
    ) -> tuple[Tensor, Tensor, Quantized | None]:  # fmt: skip
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return x.view_as(x), *rms_norm(x, weight, eps, fp8=fp8)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dx, dy = (gradient.contiguous() for gradient in gradients[:2])
        x, weight = ctx.saved_tensors
        return rms_norm_backward(x, weight, dy, dx, ctx.eps), None, None, None


class Projection(torch.autograd.Function):
    """``apply(x, x8, weight, bias, A, B)`` → x · weightᵀ + bias + (x · Aᵀ) · Bᵀ; weight and bias are frozen.

    x is (tokens, in), A (r, in) and B (out, r), scale included, all of the same dtype; bias, or A and B, may be None.
    The weight is (out, in), or in FP8, for which x8 may be x in E4M3, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x8: Quantized | None, weight: Tensor | Fp8Linear, bias: Tensor | None, a: Tensor | None,
        b: Tensor | None,
    ) -> Tensor:  # fmt: skip
        y, thin = adapted(x, x8, weight, bias, a, b)
        ctx.save_for_backward(x if a is not None else None, a, b, thin)
        ctx.weight = weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (dy,), (x, a, b, thin) = gradients, ctx.saved_tensors
        dthin = None if b is None else dy @ b
        dx = adapted_back(dy, None, ctx.weight, a, dthin) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, *((None, None) if dthin is None else (dthin.t() @ x, dy.t() @ thin))


def adapted(
    x: Tensor, x8: Quantized | None, weight: Tensor | Fp8Linear, bias: Tensor | None, a: Tensor | None,
    b: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """x · weightᵀ + bias + (x · aᵀ) · bᵀ, and x · aᵀ."""
    thin = None if a is None else x @ a.t()
    if isinstance(weight, Fp8Linear):
        return weight.forward(x, x8, bias, thin, b), thin
    y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return (y if thin is None or b is None else y.addmm_(thin, b.t())), thin


def adapted_back(
    dy: Tensor, dy8: Quantized | None, weight: Tensor | Fp8Linear, a: Tensor | None, dthin: Tensor | None
) -> Tensor:  # fmt: skip
    """Gradient of x, from those of ``adapted``'s result and of x · aᵀ."""
    if isinstance(weight, Fp8Linear):
        return weight.backward(dy, dy8, dthin, a)
    dx = dy @ weight
    return dx if a is None or dthin is None else dx.addmm_(dthin, a)


class JoinedProjection:
    """Linear modules with a common input as one product; their weights become views of one tensor.

    Args:
        modules: ``nn.Linear`` or PEFT's wrapper of one, without dropout.
        fp8: round the weights to E4M3; the modules' own take no memory then, and hold no weights.

    Attributes:
        fp8: as given.
        rounding: what that did; None without ``fp8``.
    """

    def __init__(self, modules: list[Any], *, fp8: bool = False):
        self._modules = modules
        bases: list[Any] = [module.get_base_layer() if isinstance(module, LoraLinear) else module for module in modules]
        weight: Tensor = bases[0].weight.data
        self.bias = None if bases[0].bias is None else bases[0].bias.data
        self._sizes = [base.weight.shape[0] for base in bases]
        if len(bases) > 1:
            weight = self._joined([base.weight for base in bases])
            self.bias = None if self.bias is None else self._joined([base.bias for base in bases])
        self.fp8 = fp8
        self.weight: Tensor | Fp8Linear = weight
        self.rounding: Rounding | None = None
        if fp8:
            self.weight, self.rounding = Fp8Linear.of(weight)
            start = 0
            for base, size in zip(bases, self._sizes, strict=True):
                base.weight.data = base.weight.new_zeros(()).expand(base.weight.shape)
                base.__dict__["forward"] = partial(_alone, self.weight.part(slice(start, start + size)), base.bias)
                start += size

    def _joined(self, parameters: list[Tensor]) -> Tensor:
        """All of them in one, of which they become views."""
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, whole.split(self._sizes), strict=True):
            parameter.data = part
        return whole

    def __call__(self, x: Tensor, x8: Quantized | None = None) -> Tensor:
        """(tokens, in) → (tokens, all outputs)."""
        result = Projection.apply(x, x8, self.weight, self.bias, *self.factors(x.dtype))
        assert isinstance(result, Tensor)
        return result

    def factors(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """A of all modules one below the other, and the scaled B of each beside zeros."""
        a, b = [], []
        for module, size in zip(self._modules, self._sizes, strict=True):
            if isinstance(module, LoraLinear) and not module.disable_adapters and not module.merged:
                (name,) = module.active_adapters
                a.append(module.lora_A[name].weight)
                b.append(module.lora_B[name].weight * module.scaling[name])
            else:
                b.append(torch.zeros(size, 0, device=module.weight.device))
        if not a:
            return None, None
        return torch.cat(a).to(dtype), torch.block_diag(*b).to(dtype)


def join(owner: nn.Module, first: list[Any], last: Any, *, fp8: bool) -> None:
    """Keep the projections of attention or an MLP with it, as ``joined`` and ``output``."""
    owner.__dict__ |= {"joined": JoinedProjection(first, fp8=fp8), "output": JoinedProjection([last], fp8=fp8)}


def _alone(weight: Fp8Linear, bias: Tensor | None, x: Tensor) -> Tensor:
    """What a module without its weights computes, as where text is generated."""
    y = Projection.apply(x.flatten(0, -2), None, weight, bias, None, None)
    assert isinstance(y, Tensor)
    return y.unflatten(0, x.shape[:-1])


def in_backward() -> bool:
    """Whether autograd computes gradients: a forward pass in it is a replay for checkpointing."""
    return torch._C._current_graph_task_id() != -1
