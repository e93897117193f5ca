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

from ftkit.models.fused.layers import CHECKPOINTS_IN_CALL, AddNorm, JoinedProjection, Norm
from ftkit.models.lora import bare_model
from ftkit.models.swiglu.attention import RotaryAttention
from ftkit.models.swiglu.mlp import FusedMlp


def fuse_layers(model: nn.Module, layer_class: str) -> None:
    """Give every decoder layer of a model, wrapped by PEFT or not, the fused forward."""
    backbone: Any = bare_model(model).base_model
    backbone.norm.__dict__["forward"] = MethodType(_norm, backbone.norm)
    silu = backbone.config.hidden_act == "silu"
    for layer in backbone.modules():
        if type(layer).__name__ == layer_class:
            attention: Any = layer.self_attn
            attention.__dict__["joined"] = JoinedProjection([attention.q_proj, attention.k_proj, attention.v_proj])
            attention.__dict__["output"] = JoinedProjection([attention.o_proj])
            if silu and hasattr(layer.mlp, "gate_proj") and layer.mlp.gate_proj.bias is None:
                layer.mlp.__dict__["fused"] = FusedMlp(layer.mlp)
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
    hidden, normed = Norm.apply(hidden_states, first.weight, first.variance_epsilon)
    attended = _attention(self.self_attn, normed[0], position_embeddings, cu_seq_lens_q, max_length_q)
    hidden, normed = AddNorm.apply(hidden, attended[None], second.weight, second.variance_epsilon)
    fused = self.mlp.__dict__.get("fused")
    return hidden + (self.mlp(normed) if fused is None else fused(normed[0])[None])


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    return Norm.apply(hidden_states, self.weight, self.variance_epsilon)[1]


def _attention(self: Any, x: Tensor, cos_sin: tuple[Tensor, Tensor], bounds: Tensor, longest: int) -> Tensor:
    """(tokens, hidden) → the same."""
    heads = self.config.num_attention_heads, self.config.num_key_value_heads
    qkv = self.__dict__["joined"](x).view(len(x), -1, self.head_dim)
    norms = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
    weights = (None if norm is None else norm.weight for norm in norms)
    eps = 0.0 if norms[0] is None else norms[0].variance_epsilon
    window = getattr(self, "sliding_window", None)
    o = RotaryAttention.apply(
        qkv, *(t[0] for t in cos_sin), *weights, eps, bounds, longest, window, self.scaling, heads
    )
    return self.__dict__["output"](o)
