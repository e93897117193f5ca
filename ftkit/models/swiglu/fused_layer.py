"""Decoder layers of Llama's form with fewer passes over memory, for CUDA GPUs.

One product for queries, keys and values, and one for gate and up, LoRA without a detour through float32, norms of heads
and the rotary embedding in one kernel, SwiGLU in one, and the residual sum together with the norm after it. Parameters,
modules and results are those of transformers' layers.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ftkit.models.fused.layers import CHECKPOINTS_IN_CALL, AddNorm, Norm, join
from ftkit.models.kernels.fp8 import Quantized
from ftkit.models.lora import bare_model
from ftkit.models.swiglu.attention import RotaryAttention
from ftkit.models.swiglu.mlp import mlp


def fuse_layers(model: nn.Module, layer_class: str, *, fp8: bool = False) -> None:
    """Give every decoder layer of a model, wrapped by PEFT or not, the fused forward; with ``fp8`` linear weights
    become E4M3's."""
    backbone: Any = bare_model(model).base_model
    backbone.norm.__dict__["forward"] = MethodType(_norm, backbone.norm)
    silu = backbone.config.hidden_act == "silu"
    for layer in backbone.modules():
        if type(layer).__name__ == layer_class:
            attention: Any = layer.self_attn
            join(attention, [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj, fp8=fp8)
            if silu and hasattr(layer.mlp, "gate_proj") and layer.mlp.gate_proj.bias is None:
                join(layer.mlp, [layer.mlp.gate_proj, layer.mlp.up_proj], layer.mlp.down_proj, fp8=fp8)
            layer.__dict__["forward"] = MethodType(_layer, layer)


def _layer(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """The fused forward, recomputed in the backward pass where checkpointing is on; without bounds of documents, as
    with a cache, transformers' own."""
    if kwargs.get("cu_seq_lens_q") is None:
        return type(self).forward(self, hidden_states, **kwargs)
    if self.gradient_checkpointing and self.training and not CHECKPOINTS_IN_CALL:
        return self._gradient_checkpointing_func(partial(_fused, self, **kwargs), hidden_states)
    return _fused(self, hidden_states, **kwargs)


def _fused(
    self: Any, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], cu_seq_lens_q: Tensor,
    max_length_q: int, **kwargs: Any,
) -> Tensor:  # fmt: skip
    first, second = self.input_layernorm, self.post_attention_layernorm
    fp8: bool = self.self_attn.__dict__["joined"].fp8
    hidden, normed, normed8 = Norm.apply(hidden_states, first.weight, first.variance_epsilon, fp8)
    attended = _attention(self.self_attn, normed[0], normed8, position_embeddings, cu_seq_lens_q, max_length_q)
    joined, output = (self.mlp.__dict__.get(name) for name in ("joined", "output"))
    fp8 = joined is not None and joined.fp8
    hidden, normed, normed8 = AddNorm.apply(hidden, attended[None], second.weight, second.variance_epsilon, fp8)
    return hidden + (mlp(joined, output, normed[0], normed8)[None] if joined and output else self.mlp(normed))


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    return Norm.apply(hidden_states, self.weight, self.variance_epsilon, False)[1]


def _attention(
    self: Any, x: Tensor, x8: Quantized | None, cos_sin: tuple[Tensor, Tensor], bounds: Tensor, longest: int
) -> Tensor:  # fmt: skip
    """(tokens, hidden) → the same."""
    heads = self.config.num_attention_heads, self.config.num_key_value_heads
    qkv = self.__dict__["joined"](x, x8).view(len(x), -1, self.head_dim)
    norms = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
    weights = (None if norm is None else norm.weight for norm in norms)
    eps = 0.0 if norms[0] is None else norms[0].variance_epsilon
    window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
    o = RotaryAttention.apply(
        qkv, *(t[0] for t in cos_sin), *weights, eps, bounds, longest, window, self.scaling, heads
    )
    return self.__dict__["output"](o)
