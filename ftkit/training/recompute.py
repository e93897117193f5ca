"""Which layers drop their activations and compute them again in the backward pass, and what of them is kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from ftkit.models.kept_attention import kept


class RecomputeSome(TrainerCallback):
    """Leaves checkpointing on in so many decoder layers, spread evenly, and turns it off in the others.

    Args:
        layers: that recompute their activations.
        keep_attention: whether these keep the output of attention without a window.
    """

    def __init__(self, layers: int, *, keep_attention: bool = False):
        self._layers, self._keep_attention = layers, keep_attention

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """After the Trainer has turned it on in all of them."""
        assert model is not None
        found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer, recomputes in zip(found, spread(self._layers, len(found)), strict=True):
            layer.gradient_checkpointing = recomputes
            if recomputes and self._keep_attention:
                recompute: Any = layer._gradient_checkpointing_func
                layer.__dict__["_gradient_checkpointing_func"] = partial(recompute, context_fn=kept)


def spread(count: int, places: int) -> list[bool]:
    """``places`` truth values of which ``count`` are true, as evenly as can be."""
    return [(i + 1) * count // places > i * count // places for i in range(places)]
