"""What of the fast path this machine can run, and putting it into a model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftkit.config.schema import Config
from ftkit.models.experts import LowRankWrapper, keep_low_rank
from ftkit.models.lora import bare_model
from ftkit.models.mxfp4 import BLOCK

if TYPE_CHECKING:
    from ftkit.models.gpt_oss.fp8_experts import Fp8Weight
    from ftkit.models.gpt_oss.fused_experts import DenseWeight, Layer, PackedWeight

PARTS = 2
"""Parts in which an MXFP4 tensor is unpacked: more of them need less memory and more time."""


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why ``ftkit_sinks`` and ``ftkit_lora`` run in plain torch here; None where they run fused."""
    a = config.model.architecture
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if config.model.products == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has no FP8"
    if find_spec("triton") is None:
        return "triton is not installed"
    if config.model.dtype != "bfloat16" or not config.sft.bf16:
        return "it is not in bfloat16"
    if config.lora is None:
        return "all weights are trained (lora=none)"
    if config.sft.fsdp:
        return "weights are sharded (sft.fsdp)"
    if config.lora.lora_dropout:
        return f"lora.lora_dropout is {config.lora.lora_dropout}"
    if (
        a.hidden_size % 32
        or a.intermediate_size % 32
        or (a.num_local_experts or 0) > 255
        or a.head_dim & (a.head_dim - 1)
    ):
        return "of the model's shape"
    return None


def speed_up(model: nn.Module, config: Config, *, fused: bool) -> None:
    """Make a model that PEFT has wrapped compute as the configuration's attention and experts implementation say.

    Args:
        fused: by the kernels for CUDA GPUs; else in plain torch.
    """
    if config.model.experts_implementation == "ftkit_lora":
        keep_low_rank(model)
        if fused:
            fuse_experts(model, fp8=config.model.products == "fp8")
    if config.model.weights == "mxfp4" and fused:
        from ftkit.models.host_embedding import keep_embedding_on_host

        keep_embedding_on_host(bare_model(model))
    if config.model.attn_implementation == "ftkit_sinks" and fused:
        from ftkit.models.gpt_oss.fused_layer import fuse_layers

        fuse_layers(model)


@dataclass(frozen=True)
class FusedLayer:
    """A layer's experts as one function of (hidden, top_k_weights, top_k_index, up A, up B, down A, down B)."""

    function: type[torch.autograd.Function]
    layer: Layer[Any]

    def __call__(self, *given: Tensor | None) -> Tensor:
        result = self.function.apply(*given, self.layer)
        assert isinstance(result, Tensor)
        return result


def fuse_experts(model: nn.Module, *, fp8: bool) -> None:
    """Hand all experts of a gpt-oss to the kernels.

    Dense weights move into wider tensors, or with ``fp8`` become E4M3's; packed ones stay.
    """
    for module in model.modules():
        if hasattr(module, "gate_up_proj_bias"):
            module.__dict__["fused"] = _fused_layer(module, fp8)


def rounded_share(model: nn.Module) -> float:
    """Share of the weights' rows that E4M3 does not hold as they were; 0 where no weight is in it."""
    from ftkit.models.gpt_oss.fp8_experts import Fp8Weight

    layers = [module.__dict__["fused"].layer for module in model.modules() if "fused" in module.__dict__]
    weights = [weight for layer in layers for weight in (layer.up, layer.down) if isinstance(weight, Fp8Weight)]
    rows = sum(weight.experts * (weight.width + weight.out) for weight in weights)
    return sum(weight.rounded for weight in weights) / max(rows, 1)


def _fused_layer(experts: Any, fp8: bool) -> FusedLayer:
    from ftkit.models.gpt_oss.fp8_experts import DenseFp8Weight, Fp8Experts, PackedFp8Weight
    from ftkit.models.gpt_oss.fused_experts import DenseWeight, FusedExperts, Layer, PackedWeight, extra_columns

    adapters: dict[str, LowRankWrapper] = experts.__dict__.get("adapters", {})
    extra = extra_columns(*(wrapper.r[wrapper.active_adapters[0]] for wrapper in adapters.values()))
    parts = PARTS if experts.intermediate_size % (BLOCK * PARTS) == 0 else 1

    def weight(name: str) -> DenseWeight | PackedWeight | Fp8Weight:
        if hasattr(experts, f"{name}_blocks"):
            packed = getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales"), extra
            return PackedFp8Weight(*packed) if fp8 else PackedWeight(*packed, parts)
        return (DenseFp8Weight if fp8 else DenseWeight)(getattr(experts, name), extra)

    def scale(name: str) -> float:
        return adapters[name].scaling[adapters[name].active_adapters[0]] if name in adapters else 0.0

    layer = Layer(
        up=weight("gate_up_proj"),
        down=weight("down_proj"),
        up_bias=experts.gate_up_proj_bias,
        down_bias=experts.down_proj_bias,
        up_scale=scale("gate_up_proj"),
        down_scale=scale("down_proj"),
        limit=experts.limit,
        alpha=experts.alpha,
    )
    return FusedLayer(Fp8Experts if fp8 else FusedExperts, layer)
