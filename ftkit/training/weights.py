"""Trained weights on their way out of a model: the adapter, or all of them where there is none."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ftkit.families import family_of


def gather_weights(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Trained weights from all processes, on the first; None where each process has them whole."""
    if not isinstance(model, FSDPModule):
        return None
    adapters = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters)
    return dict(get_model_state_dict(model, options=options))  # pyright: ignore


def named_weights(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All weights by their names in ``state_dict``, and those of them that are trained; none is copied."""
    state = dict(model.state_dict(keep_vars=True))
    return state, {name: weight.detach() for name, weight in state.items() if weight.requires_grad}


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """What the adapter's file holds, by its names there; none is copied.

    PEFT finds the names by a walk through the model's modules, which its own experts change in each forward pass: not
    for another thread.
    """
    found = get_peft_model_state_dict(model, model.state_dict(keep_vars=True), save_embedding_layers=False)
    return {name: tensor.detach() for name, tensor in found.items()}


def write_adapter_config(model: PeftModel, folder: Path) -> None:
    """Write the adapter's configuration as PEFT does beside its weights."""
    config = copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def write_adapter(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter's file, of what ``adapter_tensors`` gives."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def write_weights(model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter, or the whole model where there is none.

    Args:
        model: that was trained.
        folder: where to.
        weights: what to write by the names of ``state_dict``, as ``gather_weights`` gives it; the model's own if None.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    else:
        assert isinstance(model, PreTrainedModel)
        # A model that came from MXFP4 would be saved under names that its dense architecture does not find again.
        original = not isinstance(model, FSDPModule) and not family_of(model.config.model_type).mxfp4
        model.save_pretrained(folder, save_original_format=original, state_dict=weights)
