"""Trained weights on their way out of a model: the adapter, or all of them where there is none."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
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
