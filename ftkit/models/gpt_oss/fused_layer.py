"""gpt-oss's decoder layer with fewer passes over memory, for CUDA GPUs.

One product for queries, keys and values, LoRA without a detour through float32, rotary embedding and attention sinks in
a kernel each, and the residual sum together with the norm after it. Parameters, modules and results are those of
transformers' layer.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssDecoderLayer,
    GptOssModel,
    GptOssRMSNorm,
)

from ftkit.models.fused.layers import CHECKPOINTS_IN_CALL, AddNorm, Norm, join
from ftkit.models.gpt_oss.attention import SinkAttention
from ftkit.models.kernels.fp8 import Quantized


def fuse_layers(model: nn.Module, *, fp8: bool = False) -> None:
    """Give every decoder layer of a gpt-oss, wrapped by PEFT or not, the fused forward; with ``fp8`` linear
    weights become E4M3's."""
    for layer in model.modules():
        if isinstance(layer, GptOssModel):
            layer.norm.__dict__["forward"] = MethodType(_norm, layer.norm)
        elif isinstance(layer, GptOssDecoderLayer):
            attention = layer.self_attn
            join(attention, [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj, fp8=fp8)
            layer.__dict__["forward"] = MethodType(_layer, layer)


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
    fp8: bool = self.self_attn.__dict__["joined"].fp8
    hidden, normed, normed8 = Norm.apply(hidden_states, first.weight, first.variance_epsilon, fp8)
    attended = _attention(self.self_attn, normed, normed8, position_embeddings, cu_seq_lens_q, max_length_q)
    hidden, normed, _ = AddNorm.apply(hidden, attended, second.weight, second.variance_epsilon, False)
    return hidden + self.mlp(normed)[0]


def _norm(self: GptOssRMSNorm, hidden_states: Tensor) -> Tensor:
    return Norm.apply(hidden_states, self.weight, self.variance_epsilon, False)[1]


def _attention(
    self: GptOssAttention, x: Tensor, x8: Quantized | None, cos_sin: tuple[Tensor, Tensor], bounds: Tensor, longest: int
) -> Tensor:  # fmt: skip
    """(1, tokens, hidden) → the same."""
    queries, keys = self.config.num_attention_heads, self.config.num_key_value_heads
    qkv = self.__dict__["joined"](x[0], x8).view(-1, queries + 2 * keys, self.head_dim)
    cos, sin = (t[0].contiguous() for t in cos_sin)
    o = SinkAttention.apply(qkv, cos, sin, self.sinks, bounds, longest, self.sliding_window, (queries, keys))
    return self.__dict__["output"](o)[None]
