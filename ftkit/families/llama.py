"""Llama, and what is built as it is: SmolLM2, many Japanese models."""

from __future__ import annotations

from ftkit.families.family import ATTENTION, MLP, Family

FAMILY = Family(
    model_type="llama",
    title="Llama",
    layer_class="LlamaDecoderLayer",
    attention=("ftkit_varlen", "sdpa", "eager"),
    linear=(*ATTENTION, *MLP),
    implementation="ftkit.models.swiglu",
)
