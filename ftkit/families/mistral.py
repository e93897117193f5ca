"""Mistral: built as Llama, and before version 0.2 each layer looks back over a window of tokens only."""

from __future__ import annotations

from ftkit.families.family import ATTENTION, MLP, Family

FAMILY = Family(
    model_type="mistral",
    title="Mistral",
    layer_class="MistralDecoderLayer",
    attention=("ftkit_varlen", "sdpa", "eager"),
    linear=(*ATTENTION, *MLP),
    implementation="ftkit.models.swiglu",
)
