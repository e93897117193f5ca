"""gpt-oss's decoder layer with fewer passes over memory, for CUDA GPUs.

One product for queries, keys and values, LoRA without a detour through float32, rotary embedding and attention sinks in
a kernel each, and the residual sum together with the norm after it. Parameters, modules and results are those of
transformers' layer.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssDecoderLayer,
    GptOssModel,
    GptOssRMSNorm,
)

from ftkit.models.gpt_oss.attention import SinkAttention
from ftkit.models.kernels import layer as kernels


class AddNorm(torch.autograd.Function):
    """``apply(x, delta, weight, eps)`` → x + delta, and its RMS norm; ``weight`` is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total, y = kernels.add_rms_norm(x.contiguous(), delta.contiguous(), weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dtotal, dy = (gradient.contiguous() for gradient in gradients)
        total, weight = ctx.saved_tensors
        dx = kernels.rms_norm_backward(total, weight, dy, dtotal, ctx.eps)
        return dx, dx, None, None


class Norm(torch.autograd.Function):
    """``apply(x, weight, eps)`` → x itself, and its RMS norm; the gradients of both are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return x.view_as(x), kernels.rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        dx, dy = (gradient.contiguous() for gradient in gradients)
        x, weight = ctx.saved_tensors
        return kernels.rms_norm_backward(x, weight, dy, dx, ctx.eps), None, None


class Projection(torch.autograd.Function):
    """``apply(x, weight, bias, A, B)`` → x · weightᵀ + bias + (x · Aᵀ) · Bᵀ; weight and bias are frozen.

    x is (tokens, in), A (r, in) and B (out, r), scale included, all of the same dtype; A and B may be None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None
    ) -> Tensor:  # fmt: skip
        y = torch.addmm(bias, x, weight.t())
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
        self.weight, self.bias = bases[0].weight.data, bases[0].bias.data
        self._sizes = [base.weight.shape[0] for base in bases]
        if len(bases) > 1:
            self.weight, self.bias = (torch.cat([getattr(base, n).data for base in bases]) for n in ("weight", "bias"))
            for base, weight, bias in zip(
                bases, self.weight.split(self._sizes), self.bias.split(self._sizes), strict=True
            ):
                base.weight.data, base.bias.data = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) → (tokens, all outputs)."""
        result = Projection.apply(x, self.weight, self.bias, *self._factors(x.dtype))
        assert isinstance(result, Tensor)
        return result

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """A of all modules one below the other, and the scaled B of each beside zeros."""
        a, b = [], []
        for module, size in zip(self._modules, self._sizes, strict=True):
            adapted = isinstance(module, LoraLinear) and not module.disable_adapters and not module.merged
            if adapted:
                (name,) = module.active_adapters
                a.append(module.lora_A[name].weight)
                b.append(module.lora_B[name].weight * module.scaling[name])
            else:
                b.append(self.bias.new_zeros(size, 0, dtype=torch.float32))
        if not a:
            return None, None
        return torch.cat(a).to(dtype), torch.block_diag(*b).to(dtype)


def fuse_layers(model: nn.Module) -> None:
    """Give every decoder layer of a gpt-oss, wrapped by PEFT or not, the fused forward."""
    for layer in model.modules():
        if isinstance(layer, GptOssModel):
            layer.norm.__dict__["forward"] = MethodType(_norm, layer.norm)
        elif isinstance(layer, GptOssDecoderLayer):
            attention = layer.self_attn
            attention.__dict__["joined"] = JoinedProjection([attention.q_proj, attention.k_proj, attention.v_proj])
            attention.__dict__["output"] = JoinedProjection([attention.o_proj])
            layer.__dict__["forward"] = MethodType(_layer, layer)


CHECKPOINTS_IN_CALL = "__call__" in GradientCheckpointingLayer.__dict__
"""Whether transformers checkpoints around a layer's forward (5.17) or inside that of its class (5.23), which an
instance's own forward takes the place of."""


def _layer(self: GptOssDecoderLayer, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """The fused forward, recomputed in the backward pass where checkpointing is on."""
    if self.gradient_checkpointing and self.training and not CHECKPOINTS_IN_CALL:
        recompute: Any = self._gradient_checkpointing_func
        return recompute(partial(_fused, self, **kwargs), hidden_states)
    return _fused(self, hidden_states, **kwargs)


def _fused(
    self: GptOssDecoderLayer, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor],
    cu_seq_lens_q: Tensor, max_length_q: int, **kwargs: Any,
) -> Tensor:  # fmt: skip
    first: GptOssRMSNorm = self.input_layernorm
    second: GptOssRMSNorm = self.post_attention_layernorm
    hidden, normed = Norm.apply(hidden_states, first.weight, first.variance_epsilon)
    attended = _attention(self.self_attn, normed, position_embeddings, cu_seq_lens_q, max_length_q)
    hidden, normed = AddNorm.apply(hidden, attended, second.weight, second.variance_epsilon)
    return hidden + self.mlp(normed)[0]


def _norm(self: GptOssRMSNorm, hidden_states: Tensor) -> Tensor:
    return Norm.apply(hidden_states, self.weight, self.variance_epsilon)[1]


def _attention(
    self: GptOssAttention, x: Tensor, cos_sin: tuple[Tensor, Tensor], bounds: Tensor, longest: int
) -> Tensor:  # fmt: skip
    """(1, tokens, hidden) → the same."""
    queries, keys = self.config.num_attention_heads, self.config.num_key_value_heads
    qkv = self.__dict__["joined"](x[0]).view(-1, queries + 2 * keys, self.head_dim)
    cos, sin = (t[0].contiguous() for t in cos_sin)
    o = SinkAttention.apply(qkv, cos, sin, self.sinks, bounds, longest, self.sliding_window, (queries, keys))
    return self.__dict__["output"](o)[None]
