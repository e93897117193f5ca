"""gpt-oss: experts with biases, attention with sinks, MXFP4 checkpoints, Harmony. Trained by ftkit's own kernels."""

from __future__ import annotations

import json
from typing import Any

from ftkit.families.family import ATTENTION, Family

GRAPH_SIZES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
"""Tokens of the batches that vLLM records as CUDA graphs; by itself it takes 83 sizes, and each further multiple of 32
has a routing kernel compiled. A first start is a minute shorter so, and 1 to 256 clients were answered as fast."""


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
    vllm_arguments={"compilation_config": json.dumps({"cudagraph_capture_sizes": GRAPH_SIZES})},
    chat="harmony",
    biases=_biases,
    implementation="ftkit.models.gpt_oss",
    why_not="leaves gpt-oss's attention sinks out, or does not train them",
)
