"""Putting the fast path into a gpt-oss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ftkit.config.schema import Config
from ftkit.models.experts import LowRankWrapper, keep_low_rank
from ftkit.models.lora import bare_model
from ftkit.models.mxfp4 import BLOCK

if TYPE_CHECKING:
    from ftkit.models.fused.experts import DenseWeight, FusedLayer, PackedWeight
    from ftkit.models.fused.fp8_experts import Fp8Weight

PARTS = 2
"""Parts in which an MXFP4 tensor is unpacked: more of them need less memory and more time."""


def speed_up(model: nn.Module, config: Config, *, fused: bool) -> None:
    """Make a model that PEFT has wrapped compute as the configuration's attention and experts implementation say.

    Args:
        fused: by the kernels for CUDA GPUs; else in plain torch.
    """
    if config.model.experts_implementation == "ftkit_lora":
        keep_low_rank(model)
        if fused:
            fuse_experts(model, fp8=config.model.products != "dtype")
    if config.model.weights == "mxfp4" and fused:
        from ftkit.models.host_embedding import keep_embedding_on_host

        keep_embedding_on_host(bare_model(model))
    if config.model.attn_implementation == "ftkit_sinks" and fused:
        from ftkit.models.gpt_oss.fused_layer import fuse_layers

        fuse_layers(model, fp8=config.model.products == "fp8_all")


def fuse_experts(model: nn.Module, *, fp8: bool) -> None:
    """Hand all experts of a gpt-oss to the kernels.

    Dense weights move into wider tensors, or with ``fp8`` become E4M3's; packed ones stay.
    """
    for module in model.modules():
        if hasattr(module, "gate_up_proj_bias"):
            module.__dict__["fused"] = _fused_layer(module, fp8)


def _fused_layer(experts: Any, fp8: bool) -> FusedLayer:
    from ftkit.models.fused.experts import DenseWeight, FusedExperts, FusedLayer, Layer, PackedWeight, extra_columns
    from ftkit.models.fused.fp8_experts import DenseFp8Weight, Fp8Experts, PackedFp8Weight
    from ftkit.models.kernels.glu import Glu

    adapters: dict[str, LowRankWrapper] = experts.__dict__.get("adapters", {})
    extra = extra_columns(*(wrapper.rank for wrapper in adapters.values()))
    parts = PARTS if experts.intermediate_size % (BLOCK * PARTS) == 0 else 1

    def weight(name: str) -> DenseWeight | PackedWeight | Fp8Weight:
        if hasattr(experts, f"{name}_blocks"):
            packed = getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales"), extra
            return PackedFp8Weight(*packed) if fp8 else PackedWeight(*packed, parts)
        return (DenseFp8Weight if fp8 else DenseWeight)(getattr(experts, name), extra)

    def scale(name: str) -> float:
        return adapters[name].scale if name in adapters else 0.0

    layer = Layer(
        up=weight("gate_up_proj"),
        down=weight("down_proj"),
        up_bias=experts.gate_up_proj_bias,
        down_bias=experts.down_proj_bias,
        up_scale=scale("gate_up_proj"),
        down_scale=scale("down_proj"),
        glu=Glu(limit=experts.limit, alpha=experts.alpha, offset=1.0, halves=False),
    )
    return FusedLayer(Fp8Experts if fp8 else FusedExperts, layer)
