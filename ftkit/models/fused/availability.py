"""Whether fused layers can train a model on a device."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ftkit.config.schema import Config


def why_not_fused(config: Config, device: torch.device) -> str | None:
    """Why a family's layers run in plain torch there; None where they run fused."""
    a = config.model.architecture
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if config.model.products != "dtype" and torch.cuda.get_device_capability(device) < (8, 9):
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
