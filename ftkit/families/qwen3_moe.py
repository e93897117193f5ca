"""Qwen3 with experts: no biases, a router at ``mlp.gate``."""

from __future__ import annotations

from ftkit.families.family import ATTENTION, Family

FAMILY = Family(
    model_type="qwen3_moe",
    title="Qwen3-MoE",
    layer_class="Qwen3MoeDecoderLayer",
    attention=("ftkit_varlen", "sdpa", "eager"),
    experts=("ftkit_lora", "grouped_mm", "batched_mm", "eager"),
    expert_tensors=("gate_up_proj", "down_proj"),
    router=(".mlp.gate.",),
    linear=ATTENTION,
    renamed={
        "num_local_experts": ("num_experts", "num_local_experts"),
        "intermediate_size": ("moe_intermediate_size",),
    },
    biases=lambda a: 2 * a.head_dim,
    implementation="ftkit.models.swiglu",
)
