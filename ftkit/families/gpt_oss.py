"""gpt-oss: experts with biases, attention with sinks, MXFP4 checkpoints, Harmony. Trained by ftkit's own kernels."""

from __future__ import annotations

from typing import Any

from ftkit.families.family import ATTENTION, Family


def _biases(a: Any) -> int:
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    of_attention = q + 2 * kv + a.hidden_size + a.num_attention_heads  # the last are the sinks
    return of_attention + a.num_local_experts * (1 + 2 * a.intermediate_size + a.hidden_size)


FAMILY = Family(
    model_type="gpt_oss",
    title="gpt-oss",
    layer_class="GptOssDecoderLayer",
    attention=("ftkit_sinks", "flex_attention", "eager"),
    experts=("ftkit_lora", "grouped_mm", "batched_mm", "eager"),
    expert_tensors=("gate_up_proj", "down_proj"),
    router=(".router.",),
    linear=ATTENTION,
    window=128,
    mxfp4="ftkit.models.gpt_oss.mxfp4_checkpoint",
    gguf="gpt-oss",
    chat="harmony",
    biases=_biases,
    implementation="ftkit.models.gpt_oss",
    why_not="leaves gpt-oss's attention sinks out, or does not train them",
)
