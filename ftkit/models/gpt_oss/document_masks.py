"""Packed documents must not see each other.

``GptOssModel.forward`` (transformers 5.17 to 5.23) builds its attention masks without ``position_ids``, so that the
documents of a packed row attend to one another, without a warning. A forward hook builds the masks from
``position_ids`` instead, with transformers' own mask functions, for every attention implementation.
``tests/training/test_document_masks.py`` has a canary that fails when upstream has cured it; then this module can go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssModel

POSITIONAL = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


def isolate_documents(model: torch.nn.Module) -> RemovableHandle:
    """Make a gpt-oss, bare or wrapped by PEFT or DDP, keep the documents of a packed row apart.

    A document begins where ``position_ids`` (batch, length) do not go on by one. Calls with ``cu_seq_lens_q`` get no
    mask: their attention goes by these bounds. Calls without ``position_ids``, with an ``attention_mask`` (padding,
    left or right) or with a cache (generation) are left as they are.

    Returns:
        The hook; ``remove()`` takes it out again.

    Raises:
        ValueError: there is no gpt-oss inside ``model``; and from its forward, when ``ftkit_sinks`` is given
            ``position_ids`` without ``cu_seq_lens_q``.
    """
    backbone = next((module for module in model.modules() if isinstance(module, GptOssModel)), None)
    if backbone is None:
        raise ValueError(f"{type(model).__name__} holds no GptOssModel")
    return backbone.register_forward_pre_hook(_with_document_masks, with_kwargs=True)


def _with_document_masks(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]] | None:
    assert isinstance(module, GptOssModel)
    given = dict(zip(POSITIONAL, args, strict=False)) | kwargs
    position_ids = given.get("position_ids")
    if given.get("cu_seq_lens_q") is not None:
        given["attention_mask"] = {"full_attention": None, "sliding_attention": None}
        return (), given
    if position_ids is not None and module.config._attn_implementation == "ftkit_sinks":
        raise ValueError("ftkit_sinks keeps documents apart by cu_seq_lens_q, and was given position_ids alone")
    if position_ids is None or given.get("attention_mask") is not None or given.get("past_key_values") is not None:
        return None
    batch, length = (given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]).shape[:2]
    masks: dict[str, Any] = {
        "config": module.config,
        # Only its first two sizes, its dtype and its device are read.
        "inputs_embeds": module.norm.weight.new_empty((batch, length, 0)),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": position_ids,
    }
    given["attention_mask"] = {
        "full_attention": create_causal_mask(**masks),
        "sliding_attention": create_sliding_window_causal_mask(**masks),
    }
    return (), given
