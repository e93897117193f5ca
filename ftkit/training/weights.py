"""Trained weights on their way out of a model: the adapter, or all of them where there is none."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def gather_weights(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Trained weights from all processes, on the first; None where each process has them whole."""
    if not isinstance(model, FSDPModule):
        return None
    adapters = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters)
    return dict(get_model_state_dict(model, options=options))  # pyright: ignore


def write_weights(model: nn.Module, folder: Path, gathered: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter, or the whole model where there is none.

    Args:
        model: that was trained.
        folder: where to.
        gathered: as ``gather_weights`` gives them.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=gathered)
    else:
        assert isinstance(model, PreTrainedModel)
        # By default a model that came from MXFP4 is saved under names that the dense architecture does not find again.
        model.save_pretrained(folder, save_original_format=False, state_dict=gathered)
