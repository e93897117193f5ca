"""The path that any causal language model takes: transformers' own layers, varlen attention, low-rank experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.config.schema import Config


def register() -> None:
    """Make ftkit's attention and experts known to transformers."""
    from ftkit.models import experts, varlen  # noqa: F401


def prepare(model: nn.Module, config: Config, *, fused: bool) -> str | None:
    """Make a model with its adapters compute as ``model.*`` says.

    transformers keeps the documents of a packed row apart by their ``position_ids`` (eager, sdpa), ``ftkit_varlen`` by
    their bounds; the check of the first packed row sees to it in every training.
    """
    from ftkit.models.experts import NAME, keep_low_rank

    if config.model.experts_implementation == NAME:
        keep_low_rank(model)
    return None


def flash_runs(device: torch.device, head_dim: int) -> bool:
    """Whether ``ftkit_varlen`` runs by flash attention there."""
    from ftkit.models.varlen import flash_is_there

    return flash_is_there(device, head_dim)


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why no fused layers are used here: this family has none."""
    return f"ftkit has no fused layers for {config.model.architecture.model_type}"
