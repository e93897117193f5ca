"""Model families: what ftkit knows of each before any weight is read. Imports neither torch nor transformers.

``family_of(model_type)`` finds one. A family that is not listed here trains on the plain path, as ``any_model`` says.
"""

from __future__ import annotations

from importlib import import_module

from ftkit.families.family import Family

FAMILIES = {
    "gpt_oss": "ftkit.families.gpt_oss",
    "llama": "ftkit.families.llama",
    "mistral": "ftkit.families.mistral",
    "olmo2": "ftkit.families.olmo2",
    "qwen3": "ftkit.families.qwen3",
    "qwen3_moe": "ftkit.families.qwen3_moe",
}
"""``model_type`` of a checkpoint's config.json → the module that describes its family."""
DEFAULT = "gpt_oss"
"""What a model counts as while nothing says what it is: the family of the default composition's model."""


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``; for one that has no module of its own, what holds for any causal model."""
    if model_type in FAMILIES:
        return import_module(FAMILIES[model_type]).FAMILY
    return import_module("ftkit.families.any_model").family(model_type)
