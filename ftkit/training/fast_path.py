"""What of the fast path this machine can run, and putting it into a model."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from ftkit.config.schema import Config
from ftkit.training.lora_experts import TENSORS, LowRankWrapper, keep_low_rank
from ftkit.training.mxfp4 import BLOCK

PARTS = 2
"""Parts in which an MXFP4 tensor is unpacked: more of them need less memory and more time."""


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why ``ftkit_sinks`` and ``ftkit_lora`` run in plain torch here; None where they run fused."""
    a = config.model.architecture
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if find_spec("triton") is None:
        return "triton is not installed"
    if config.model.dtype != "bfloat16" or not config.sft.bf16:
        return "it is not in bfloat16"
    if config.lora.lora_dropout:
        return f"lora.lora_dropout is {config.lora.lora_dropout}"
    if a.hidden_size % 32 or a.intermediate_size % 32 or a.num_local_experts > 255 or a.head_dim & (a.head_dim - 1):
        return "of the model's shape"
    return None


def speed_up(model: nn.Module, config: Config, *, fused: bool) -> None:
    """Make a model that PEFT has wrapped compute as ``model.attn_implementation`` and ``model.experts_implementation`` say.

    Args:
        fused: by the kernels for CUDA GPUs; else in plain torch.
    """
    if config.model.experts_implementation == "ftkit_lora":
        keep_low_rank(model)
        if fused:
            fuse_experts(model)
    if config.model.attn_implementation == "ftkit_sinks" and fused:
        from ftkit.training.fused_layer import fuse_layers

        fuse_layers(model)


def fuse_experts(model: nn.Module) -> None:
    """Hand all experts of a gpt-oss to the kernels: dense weights move into wider tensors, packed ones stay."""
    from ftkit.training.fused_experts import DenseWeight, Layer, PackedWeight, extra_columns

    for experts in model.modules():
        if not isinstance(experts, GptOssExperts):
            continue
        adapters: dict[str, LowRankWrapper] = experts.__dict__.get("adapters", {})
        extra = extra_columns(*(wrapper.r[wrapper.active_adapters[0]] for wrapper in adapters.values()))
        parts = PARTS if experts.intermediate_size % (BLOCK * PARTS) == 0 else 1
        weights = []
        for name in TENSORS:
            if hasattr(experts, f"{name}_blocks"):
                packed = getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales")
                weights.append(PackedWeight(*packed, extra, parts))
            else:
                weights.append(DenseWeight(getattr(experts, name), extra))
        scales = (w.scaling[w.active_adapters[0]] if (w := adapters.get(name)) else 0.0 for name in TENSORS)
        experts.__dict__["fused"] = Layer(
            *weights, experts.gate_up_proj_bias, experts.down_proj_bias, *scales, experts.limit, experts.alpha
        )
