"""Llama, Mistral, Qwen3 and Qwen3-MoE: fused layers of RMS norms, rotary attention and SwiGLU.

``register``, ``prepare``, ``flash_runs`` and ``why_plain`` are what ``ftkit.models.plain`` has for any other family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftkit.families import family_of
from ftkit.models import plain
from ftkit.models.plain import flash_runs, register

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.config.schema import Config

__all__ = ["flash_runs", "prepare", "register", "why_plain"]


def prepare(model: nn.Module, config: Config, *, fused: bool) -> str | None:
    """Make a model with its adapters compute as ``model.*`` says."""
    plain.prepare(model, config, fused=fused)
    if fused:
        from ftkit.models.experts import NAME
        from ftkit.models.fused.rounding import what_is_rounded
        from ftkit.models.swiglu.experts import fuse_experts
        from ftkit.models.swiglu.fused_layer import fuse_layers

        if config.model.experts_implementation == NAME:
            fuse_experts(model, fp8=config.model.products != "dtype")
        layer_class = family_of(config.model.architecture.model_type).layer_class
        assert layer_class is not None
        fuse_layers(model, layer_class, fp8=config.model.products == "fp8_all")
        return what_is_rounded(model)
    return None


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why the layers are not fused here; None where they are."""
    from ftkit.models.fused.availability import why_not_fused

    if config.model.attn_implementation != "ftkit_varlen":
        return f"model.attn_implementation is {config.model.attn_implementation}"
    return why_not_fused(config, device)
