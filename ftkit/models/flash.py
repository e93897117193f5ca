"""Flash attention of documents that lie end to end: FlashAttention 4 on a Hopper GPU that has it, else torch's own.

``use`` says which, for the whole process, before a model is trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ftkit.config.groups import Architecture, Model
from ftkit.errors import StageError
from ftkit.models.kept_attention import kept_or_made
from ftkit.packages import FLASH_ATTENTION_4, install_command, version_of

EXTRA = "hopper"
HOPPER = (9, 0)
CURE = "model.flash_attention=auto"
KEPT = "FLASH_ATTENTION_CUTE_DSL_CACHE"
"""Begins the names of the package's variables for kernels that it has compiled."""
APART = 2e-2
"""How far outputs and gradients may be from those of torch's flash attention, both in bfloat16."""


class Flash(Protocol):
    """What computes a ``FlashCall``."""

    name: str

    def forward(self, call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]: ...

    def backward(
        self, call: FlashCall, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class FlashCall:
    """Attention that is causal within each document.

    Attributes:
        bounds: (documents + 1,) int32.
        longest: tokens of the longest document.
        window: keys that a token sees, itself among them; None: all before it.
        scale: of the scores.
    """

    bounds: Tensor
    longest: int
    window: int | None
    scale: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Output (tokens, heads, head_dim), lse (heads, tokens) in float32, and what else the backward pass needs.

        Without a window they may be kept from the pass before (``kept_attention``).
        """
        return self._made(q, k, v) if self.window else kept_or_made(partial(self._made, q, k, v))

    def _made(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return _in_use.forward(self, q, k, v)

    def backward(
        self, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v; o and lse need not be those of ``forward``."""
        return _in_use.backward(self, gradient, q, k, v, o, lse, *rest)


class TorchFlash:
    """The flash attention that comes with torch: FlashAttention 2, on GPUs from Ampere on."""

    name = "torch's flash attention"

    def forward(self, call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        *made, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, call.bounds, call.bounds, call.longest, call.longest, 0.0, True, False, **self._options(call)
        )
        return tuple(made)

    def backward(
        self, call: FlashCall, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten._flash_attention_backward(
            gradient, q, k, v, o, lse, call.bounds, call.bounds, call.longest, call.longest, 0.0, True, *rest,
            **self._options(call),
        )  # fmt: skip

    @staticmethod
    def _options(call: FlashCall) -> dict[str, Any]:
        left, right = (call.window - 1, 0) if call.window else (None, None)
        return {"scale": call.scale, "window_size_left": left, "window_size_right": right}


class FlashAttention4:
    """The package flash-attn-4, whose kernels for Hopper take little more than half the time of torch's.

    Its two functions are those that torch drives it by (``torch.nn.attention``): the package's public ones cannot be
    handed another output than their own in the backward pass, which attention with sinks needs.

    Raises:
        ImportError: it is not installed, or something that it needs is not.
    """

    name = "FlashAttention 4"

    def __init__(self) -> None:
        _keep_kernels()
        from flash_attn.cute import interface  # pyright: ignore[reportMissingImports]

        self._forward, self._backward = interface._flash_attn_fwd, interface._flash_attn_bwd

    def forward(self, call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        o, lse, *_ = self._forward(q, k, v, return_lse=True, **self._options(call))
        return o, lse

    def backward(
        self, call: FlashCall, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        same = torch.are_deterministic_algorithms_enabled()
        dq, dk, dv, *_ = self._backward(q, k, v, o, gradient, lse, deterministic=same, **self._options(call))
        return dq, dk, dv

    @staticmethod
    def _options(call: FlashCall) -> dict[str, Any]:
        bounds = {"cu_seqlens_q": call.bounds, "cu_seqlens_k": call.bounds}
        longest = {"max_seqlen_q": call.longest, "max_seqlen_k": call.longest}
        seen = {"window_size_left": call.window - 1, "window_size_right": 0} if call.window else {"causal": True}
        return {**bounds, **longest, **seen, "softmax_scale": call.scale}


_in_use: Flash = TorchFlash()


def in_use() -> Flash:
    """What computes attention in this process."""
    return _in_use


def take(flash: Flash) -> None:
    """Have it compute all attention of this process."""
    global _in_use
    _in_use = flash


def use(model: Model, device: torch.device, window: int | None) -> str | None:
    """Have all attention of this process computed as ``model.flash_attention`` asks.

    FlashAttention 4 is tried first, which compiles its kernels: it is used if it agrees with torch's.

    Args:
        device: a CUDA GPU.
        window: tokens that some layers look back.

    Returns:
        Why it is not FlashAttention 4, where that is the GPU's fastest and ``auto`` would take it.

    Raises:
        StageError: ``fa4`` cannot be had.
    """
    take(TorchFlash())
    if model.flash_attention == "torch":
        return None
    fits, why = torch.cuda.get_device_capability(device) == HOPPER, ""
    if not fits:
        why = f"{torch.cuda.get_device_name(device)} is no Hopper GPU"
    elif version_of(FLASH_ATTENTION_4) is None:
        why = f"{FLASH_ATTENTION_4} is not installed: {install_command(EXTRA)}"
    else:
        try:
            found = FlashAttention4()
            _agree(found, device, model.architecture, window)
            take(found)
            return None
        except Exception as error:  # the package's own, of CUDA's and of its compiler's
            why = f"{FLASH_ATTENTION_4} {version_of(FLASH_ATTENTION_4)} does not run here: {_first_line(error)}"
    if model.flash_attention == "fa4":
        raise StageError(why, where="model.flash_attention", cure=CURE)
    return f"attention could run nearly twice as fast, by FlashAttention 4; {why}" if fits else None


def _agree(found: Flash, device: torch.device, a: Architecture, window: int | None) -> None:
    """Raises ArithmeticError: outputs or gradients are not those of torch's flash attention."""
    known, sizes = TorchFlash(), [5, 130, 1, 300]
    random = torch.Generator(device).manual_seed(0)
    bounds = torch.tensor([0, *sizes], device=device).cumsum(0).int()
    heads = a.num_attention_heads, a.num_key_value_heads, a.num_key_value_heads, a.num_attention_heads
    drawn = (
        torch.randn(sum(sizes), count, a.head_dim, device=device, generator=random, dtype=torch.bfloat16)
        for count in heads
    )
    q, k, v, gradient = drawn
    for seen in dict.fromkeys((None, window)):
        call = FlashCall(bounds, max(sizes), seen, a.head_dim**-0.5)
        exact, expected = (flash.forward(call, q, k, v) for flash in (found, known))
        results = zip(
            (*exact[:2], *found.backward(call, gradient, q, k, v, *exact)),
            (*expected[:2], *known.backward(call, gradient, q, k, v, *expected)),
            strict=True,
        )
        for mine, theirs in results:
            error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
            if not error < APART:
                raise ArithmeticError(f"it differs from torch's flash attention by {error:.1%}")


def _keep_kernels() -> None:
    """Have compiled kernels kept from one training to the next, unless the environment says whether or where."""
    if os.environ.get(f"{KEPT}_ENABLED"):
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", FLASH_ATTENTION_4)
        folder = Path(os.environ.get(f"{KEPT}_DIR") or folder)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that is not writable
        return
    os.environ |= {f"{KEPT}_DIR": str(folder), f"{KEPT}_ENABLED": "1"}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
