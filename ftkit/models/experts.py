"""The experts implementation ``ftkit_lora``: y = xW + s·(xA)B + b for each expert, on tokens sorted once.

PEFT builds the whole adapted weight of all experts on each pass, and its whole gradient. Here the adapter stays
low-rank. Its parameters are PEFT's own (``target_parameters``), so that it is saved, loaded and merged as PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "ftkit_lora"
TENSORS = ("gate_up_proj", "down_proj")
RANKS = 8
"""A grouped product takes ranks that are multiples of this: 16 bytes in bfloat16."""


class LowRankWrapper(ParamWrapper):
    """PEFT's wrapper of an expert tensor, whose adapter the experts read themselves."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.base_layer(x, *args, **kwargs)

    @property
    def rank(self) -> int:
        """Of the one adapter."""
        (name,) = self.active_adapters
        return self.r[name]

    @property
    def scale(self) -> float:
        """Of the one adapter."""
        (name,) = self.active_adapters
        return self.scaling[name]

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """A (r · E, in), B (out, r · E) and the scale; None where the adapter is switched off or merged."""
        if self.disable_adapters or self.merged:
            return None
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        return a, b, self.scaling[name]


def keep_low_rank(model: nn.Module) -> None:
    """Make the experts of a model that PEFT has wrapped read their adapters; only for ``ftkit_lora``."""
    for module in list(model.modules()):
        if isinstance(module, ParamWrapper):
            module.get_base_layer().__dict__.setdefault("adapters", {})[module.parameter_name] = module
            module.__class__ = LowRankWrapper


def lora_experts(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Experts' forward of transformers' interface.

    Args:
        hidden: (tokens, hidden).
        index: (tokens, top_k), experts.
        weights: (tokens, top_k), routing weights.

    Returns:
        (tokens, hidden).
    """
    fused: Callable[..., Tensor] | None = self.__dict__.get("fused")
    up, down = _factors(self, "gate_up_proj"), _factors(self, "down_proj")
    if fused is not None and hidden.dtype == torch.bfloat16:
        return fused(hidden, weights, index, *up[:2], *down[:2])
    top_k = index.shape[-1]
    expert, order = torch.sort(index.reshape(-1), stable=True)
    ends = torch.searchsorted(expert, torch.arange(self.num_experts, device=expert.device), right=True, out_int32=True)
    x = hidden[order // top_k]
    h = _adapted(x, _weight(self, "gate_up_proj"), up, ends)
    h = h + self.gate_up_proj_bias[expert] if self.has_bias else h
    y = _adapted(self._apply_gate(h), _weight(self, "down_proj"), down, ends)
    y = y + self.down_proj_bias[expert] if self.has_bias else y
    y = y * weights.reshape(-1)[order, None]
    return y[torch.argsort(order)].view(-1, top_k, y.shape[-1]).sum(1).to(hidden.dtype)


def _adapted(x: Tensor, weight: Tensor, factors: tuple[Any, Any, float], ends: Tensor) -> Tensor:
    """xW + s·(xA)B; ``ends`` (E,) is where the rows of each expert end in x."""
    x = x.to(weight.dtype)
    y = grouped_mm(x, weight, offs=ends)
    a, b, scale = factors
    if a is None:
        return y
    experts = len(weight)
    a = a.view(experts, -1, a.shape[-1]).transpose(1, 2).to(weight.dtype)
    b = b.view(b.shape[0], -1, experts).permute(2, 1, 0).to(weight.dtype)
    spare = -a.shape[2] % RANKS
    a, b = nn.functional.pad(a, (0, spare)), nn.functional.pad(b, (0, 0, 0, spare)).contiguous()
    return y + scale * grouped_mm(grouped_mm(x, a, offs=ends), b, offs=ends)


def _factors(experts: Any, name: str) -> tuple[Any, Any, float]:
    wrapper: LowRankWrapper | None = experts.__dict__.get("adapters", {}).get(name)
    return (wrapper.factors() if wrapper is not None else None) or (None, None, 0.0)


def _weight(experts: Any, name: str) -> Tensor:
    """The base weight (E, in, out), unpacked where it is kept in MXFP4."""
    weight = getattr(experts, name)
    if not experts.is_transposed:
        return weight.transpose(1, 2)  # (E, out, in) in most families
    if not hasattr(experts, f"{name}_blocks"):
        return weight
    from ftkit.models.mxfp4 import dequantize_mxfp4

    blocks, scales = getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales")
    return dequantize_mxfp4(blocks.unflatten(-1, (-1, 16)), scales, weight.dtype)


ALL_EXPERTS_FUNCTIONS.register(NAME, lora_experts)
