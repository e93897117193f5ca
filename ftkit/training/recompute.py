"""Which layers drop their activations and compute them again in the backward pass."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer


class RecomputeSome(TrainerCallback):
    """Leaves checkpointing on in so many decoder layers, spread evenly, and turns it off in the others.

    Args:
        layers: that recompute their activations.
    """

    def __init__(self, layers: int):
        self._layers = layers

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """After the Trainer has turned it on in all of them."""
        assert model is not None
        found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer, recomputes in zip(found, spread(self._layers, len(found)), strict=True):
            layer.gradient_checkpointing = recomputes


def spread(count: int, places: int) -> list[bool]:
    """``places`` truth values of which ``count`` are true, as evenly as can be."""
    return [(i + 1) * count // places > i * count // places for i in range(places)]
