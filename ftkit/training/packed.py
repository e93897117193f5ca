"""Loading gpt-oss with its experts left in MXFP4, as the published checkpoints have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftkit.config.schema import Model
from ftkit.training.lora_experts import TENSORS


def load_packed(
    path: str, source: dict[str, Any], config: Any, model: Model, device: torch.device
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Build the model and read its files, tensor by tensor, on to the device.

    Each expert tensor ``gate_up_proj`` becomes the buffers ``gate_up_proj_blocks`` (E, out, in / 2) and
    ``gate_up_proj_scales`` (E, out, in / 32), and a parameter of the dense tensor's shape and dtype that takes no
    memory and holds no weights: PEFT reads its shape.

    Args:
        path: folder or hub id.
        source: how to read the hub.
        config: transformers' configuration of an MXFP4 checkpoint; loses its ``quantization_config``.

    Returns:
        The model, and what is missing and unexpected, as ``from_pretrained(output_loading_info=True)`` tells it.
    """
    folder = Path(path)
    if not folder.is_dir():
        wanted, others = ["*.json", "*.safetensors"], ["original/*", "metal/*"]
        folder = Path(snapshot_download(path, allow_patterns=wanted, ignore_patterns=others, **source))
    del config.quantization_config
    with torch.device("meta"):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, model.dtype), attn_implementation=model.attn_implementation
        )
    loaded.set_experts_implementation(model.experts_implementation)
    missing = {name for name, _ in loaded.named_parameters()}
    for module in loaded.modules():
        for name in TENSORS if hasattr(module, "gate_up_proj_bias") else ():
            parameter = getattr(module, name)
            hollow = torch.zeros((), dtype=parameter.dtype, device=device).expand(parameter.shape)
            setattr(module, name, nn.Parameter(hollow, requires_grad=False))
    for name in [name for name in missing if name.endswith(tuple(f".experts.{tensor}" for tensor in TENSORS))]:
        missing |= {f"{name}_blocks", f"{name}_scales"}
        missing.remove(name)
    unexpected = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                if name in missing:
                    _place(loaded, name, tensors.get_tensor(name))
                    missing.remove(name)
                else:
                    unexpected.add(name)
    backbone: Any = loaded.base_model
    backbone.rotary_emb = type(backbone.rotary_emb)(config=config).to(device)
    return loaded.eval(), {"missing_keys": missing, "unexpected_keys": unexpected}


def _place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if tensor.dtype == torch.uint8:
        module.register_buffer(last, tensor.flatten(-2) if last.endswith("_blocks") else tensor, persistent=False)
    else:
        wanted = getattr(module, last)
        if tensor.shape != wanted.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, and the model has {tuple(wanted.shape)}")
        setattr(module, last, nn.Parameter(tensor.to(wanted.dtype), requires_grad=False))
