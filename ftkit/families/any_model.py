"""Any causal language model of transformers that has a chat template: the plain path, by stock implementations."""

from __future__ import annotations

from ftkit.families.family import Family


def family(model_type: str) -> Family:
    """What holds for a model of which ftkit knows nothing more: stock attention, adapters on linear layers."""
    return Family(model_type=model_type, title=model_type, layer_class=None, attention=("sdpa", "eager"))
