"""gpt-oss with its experts in MXFP4, as the published checkpoints have them: loading it so, and saving it so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftkit.config.groups import Model
from ftkit.models.experts import TENSORS
from ftkit.models.mxfp4 import BLOCK, dequantize_mxfp4, quantize_mxfp4

QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
"""``quantization_config`` of the published checkpoints."""

LARGEST_SHARD = "5GB"


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
            config,
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attn_implementation,
            trust_remote_code=False,
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
    unexpected, where = set(), str(device) if device.type == "cuda" else device.type
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=where) as tensors:
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
    weight, _, kind = last.rpartition("_")
    if tensor.dtype == torch.uint8:
        experts, width, out = getattr(module, weight).shape
        shape = (experts, out, width // BLOCK, *((BLOCK // 2,) if kind == "blocks" else ()))
    else:
        shape = tuple(getattr(module, last).shape)
    if tensor.shape != shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, and the model has {shape}")
    if tensor.dtype == torch.uint8:
        module.register_buffer(last, tensor.flatten(-2) if kind == "blocks" else tensor, persistent=False)
    else:
        setattr(module, last, nn.Parameter(tensor.to(getattr(module, last).dtype), requires_grad=False))


@torch.no_grad()
def round_experts(model: PreTrainedModel) -> float:
    """Round the expert weights of a dense model to what MXFP4 holds, in place.

    Returns:
        Norm of the rounding error of all of them, as a share of their norm.
    """
    error = norm = 0.0
    for _, weight in _experts(model):
        for expert in weight:  # one at a time: rounding takes some ten times its memory
            rounded = dequantize_mxfp4(*quantize_mxfp4(expert), dtype=torch.float32)
            error += (rounded - expert).square().sum().item()
            norm += expert.float().square().sum().item()
            expert.copy_(rounded)
    return (error / norm) ** 0.5


@torch.no_grad()
def save_packed(model: PreTrainedModel, folder: Path) -> None:
    """Write a dense model whose experts are rounded as a published checkpoint: configuration, shards, index.

    Besides the model, one shard of at most ``LARGEST_SHARD`` is in memory.

    Args:
        model: after ``round_experts``.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    experts = dict(_experts(model))
    dense = {name: tensor for name, tensor in model.state_dict().items() if name not in experts}
    shapes: dict[str, Tensor] = {name: tensor.to("meta") for name, tensor in dense.items()}
    for name, weight in experts.items():
        number, width, out = weight.shape
        scales = torch.empty(number, out, width // BLOCK, dtype=torch.uint8, device="meta")
        shapes |= {f"{name}_blocks": scales[..., None].expand(-1, -1, -1, BLOCK // 2), f"{name}_scales": scales}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=LARGEST_SHARD)
    for file, names in split.filename_to_tensors.items():
        shard = {name: dense[name].contiguous().cpu() for name in names if name in dense}
        for name in dict.fromkeys(name.removesuffix("_blocks").removesuffix("_scales") for name in names):
            if name in experts:
                packed = zip(*map(quantize_mxfp4, experts[name]), strict=True)
                shard |= dict(zip((f"{name}_blocks", f"{name}_scales"), map(_stacked, packed), strict=True))
        save_file({name: shard[name] for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.quantization_config = QUANTIZATION
    model.config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)


def packed_bytes(model: PreTrainedModel) -> int:
    """Bytes of the tensors that ``save_packed`` writes."""
    experts = dict(_experts(model))
    dense = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in experts)
    return dense + sum(weight.numel() // 2 + weight.numel() // BLOCK for weight in experts.values())


def _experts(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The expert weights by name, each (experts, in, out)."""
    names = tuple(f".experts.{name}" for name in TENSORS)
    return ((name, parameter) for name, parameter in model.named_parameters() if name.endswith(names))


def _stacked(experts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(experts).cpu()
