"""gpt-oss: attention with sinks, MXFP4, and the fused layers that train it.

``register``, ``prepare``, ``flash_runs`` and ``why_plain`` are what ``ftkit.models.plain`` has for any other family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.config.schema import Config


def register() -> None:
    """Make ftkit's attention and experts known to transformers."""
    from ftkit.models import experts  # noqa: F401
    from ftkit.models.gpt_oss import attention  # noqa: F401


def prepare(model: nn.Module, config: Config, *, fused: bool) -> str | None:
    """Keep the documents of a packed row apart, and make the layers compute as ``model.*`` says.

    Returns:
        What is to be said of it.
    """
    from ftkit.models.gpt_oss.document_masks import isolate_documents
    from ftkit.models.gpt_oss.fast_path import speed_up

    isolate_documents(model)
    speed_up(model, config, fused=fused)
    if not fused:
        return None
    from ftkit.models.fused.rounding import what_is_rounded

    return what_is_rounded(model)


def flash_runs(device: torch.device, head_dim: int) -> bool:
    """Whether ``ftkit_sinks`` runs by flash attention there."""
    from ftkit.models.gpt_oss.attention import flash_takes

    return flash_takes(device, head_dim)


def why_plain(config: Config, device: torch.device) -> str | None:
    """Why the layers are not fused here; None where they are."""
    from ftkit.models.fused.availability import why_not_fused

    return why_not_fused(config, device)
