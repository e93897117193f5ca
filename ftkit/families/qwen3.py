"""Qwen3, dense: norms on queries and keys, thinking in ``<think>``."""

from __future__ import annotations

from ftkit.families.family import ATTENTION, MLP, Family

FAMILY = Family(
    model_type="qwen3",
    title="Qwen3",
    layer_class="Qwen3DecoderLayer",
    attention=("ftkit_varlen", "sdpa", "eager"),
    linear=(*ATTENTION, *MLP),
    biases=lambda a: 2 * a.head_dim,
    implementation="ftkit.models.swiglu",
)
