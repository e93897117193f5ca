"""What ``train`` says of weights that are multiplied in FP8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ftkit.models.fused.experts import FusedLayer
from ftkit.models.fused.fp8_experts import Fp8Weight
from ftkit.models.fused.fp8_linear import Rounding
from ftkit.models.fused.layers import JoinedProjection


def what_is_rounded(model: nn.Module) -> str | None:
    """For the user; None where no product is in FP8."""
    parts = [part for part in (_of_experts(model), _of_linear_layers(model)) if part]
    return "; ".join(parts) if parts else None


def _of_experts(model: nn.Module) -> str | None:
    layers = [kept.layer for kept in _kept(model) if isinstance(kept, FusedLayer)]
    weights = [weight for layer in layers for weight in (layer.up, layer.down) if isinstance(weight, Fp8Weight)]
    if not weights:
        return None
    rows = sum(weight.experts * (weight.width + weight.out) for weight in weights)
    share = sum(weight.rounded for weight in weights) / rows
    exact = f"{share:.1%} of the weights' rows are rounded to it" if share else "the weights are exact in it"
    return f"experts' products in FP8 (E4M3): {exact}, tokens and gradients are rounded"


def _of_linear_layers(model: nn.Module) -> str | None:
    found = [kept.rounding for kept in _kept(model) if isinstance(kept, JoinedProjection) and kept.rounding]
    if not found:
        return None
    rounding = Rounding.together(found)
    return (
        f"linear layers' products in FP8 (E4M3): {rounding.share:.1%} of the weights' rows are rounded to it, by "
        f"{rounding.relative:.1%} of their norm; merging and serving take them as they were"
    )


def _kept(model: nn.Module) -> Iterator[Any]:
    """What fused layers keep beside modules and parameters."""
    for module in model.modules():
        yield from module.__dict__.values()
