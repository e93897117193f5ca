"""Experts with SwiGLU and no biases, by the kernels of ``ftkit.models.fused``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ftkit.models.experts import TENSORS, LowRankWrapper
from ftkit.models.fused.experts import DenseWeight, FusedExperts, FusedLayer, Layer, extra_columns
from ftkit.models.fused.fp8_experts import DenseFp8Weight, Fp8Experts
from ftkit.models.kernels.glu import SWIGLU


def fuse_experts(model: nn.Module, *, fp8: bool = False) -> None:
    """Hand all experts to the kernels, with adapters or without; their weights move into wider tensors, or with ``fp8``
    become E4M3's."""
    for module in model.modules():
        if set(TENSORS) <= dict(module.named_parameters(recurse=False)).keys():
            module.__dict__["fused"] = _fused_layer(module, fp8)


def _fused_layer(experts: Any, fp8: bool) -> FusedLayer:
    adapters: dict[str, LowRankWrapper] = experts.__dict__.get("adapters", {})
    extra = extra_columns(*(wrapper.rank for wrapper in adapters.values()))
    kind = DenseFp8Weight if fp8 else DenseWeight
    up, down = (kind(getattr(experts, name), extra, transposed=True) for name in TENSORS)
    up_scale, down_scale = (adapters[name].scale if name in adapters else 0.0 for name in TENSORS)
    like = experts.gate_up_proj
    up_bias, down_bias = (like.new_zeros(weight.experts, weight.out) for weight in (up, down))
    layer = Layer(up, down, up_bias, down_bias, up_scale, down_scale, SWIGLU)
    return FusedLayer(Fp8Experts if fp8 else FusedExperts, layer)
