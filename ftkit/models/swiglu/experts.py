"""Experts with SwiGLU and no biases, by the kernels of ``ftkit.models.fused.experts``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ftkit.models.experts import TENSORS, LowRankWrapper
from ftkit.models.fused.experts import DenseWeight, FusedExperts, FusedLayer, Layer, extra_columns
from ftkit.models.kernels.glu import SWIGLU


def fuse_experts(model: nn.Module) -> None:
    """Hand all experts to the kernels, with adapters or without; their weights move into wider tensors."""
    for module in model.modules():
        if set(TENSORS) <= dict(module.named_parameters(recurse=False)).keys():
            module.__dict__["fused"] = _fused_layer(module)


def _fused_layer(experts: Any) -> FusedLayer:
    adapters: dict[str, LowRankWrapper] = experts.__dict__.get("adapters", {})
    extra = extra_columns(*(wrapper.rank for wrapper in adapters.values()))
    up, down = (DenseWeight(getattr(experts, name), extra, transposed=True) for name in TENSORS)
    up_scale, down_scale = (adapters[name].scale if name in adapters else 0.0 for name in TENSORS)
    up_bias, down_bias = (weight.extended.new_zeros(weight.experts, weight.out) for weight in (up, down))
    return FusedLayer(FusedExperts, Layer(up, down, up_bias, down_bias, up_scale, down_scale, SWIGLU))
