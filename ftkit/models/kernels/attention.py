"""Triton kernels beside attention: the rotary embedding of joined projections, and sinks."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2


@triton.jit
def _rotate(
    source, source_row, target, target_row, cos, sin, HEADS: tl.constexpr, HP: tl.constexpr, HALF: tl.constexpr,
    SIGN: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HP), tl.arange(0, HALF)
    live = head[:, None] < HEADS
    place = head[:, None] * (2 * HALF) + d[None, :]
    first = tl.load(source + token * source_row + place, mask=live, other=0.0)
    second = tl.load(source + token * source_row + place + HALF, mask=live, other=0.0)
    if not PLAIN:
        c = tl.load(cos + token * HALF + d).to(tl.float32)[None, :]
        s = tl.load(sin + token * HALF + d).to(tl.float32)[None, :] * SIGN
        a, b = first.to(tl.float32), second.to(tl.float32)
        first, second = (a * c - b * s).to(first.dtype), (b * c + a * s).to(second.dtype)
    tl.store(target + token * target_row + place, first, mask=live)
    tl.store(target + token * target_row + place + HALF, second, mask=live)


def rotate(
    source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False, plain: bool = False
) -> None:
    """Rotary position embedding of heads, halves side by side; ``back`` turns the other way, ``plain`` copies.

    Args:
        source: (tokens, heads, head_dim), last two dimensions contiguous.
        target: likewise; written.
        cos: (tokens, head_dim / 2), contiguous.
        sin: likewise.
    """
    tokens, heads, width = source.shape
    _rotate[(tokens,)](
        source, source.stride(0), target, target.stride(0), cos, sin, HEADS=heads, HP=next_power_of_2(heads),
        HALF=width // 2, SIGN=-1.0 if back else 1.0, PLAIN=plain, num_warps=4,
    )  # fmt: skip


@triton.jit
def _apply_sinks(
    o, lse, sinks, new_o, new_lse, lse_row, new_row, HEADS: tl.constexpr, HP: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HP), tl.arange(0, D)
    live = head < HEADS
    place = token * HEADS * D + head[:, None] * D + d[None, :]
    old = tl.load(lse + head * lse_row + token, mask=live, other=0.0)
    s = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(s - old))
    values = tl.load(o + place, mask=live[:, None], other=0.0)
    tl.store(new_o + place, (values.to(tl.float32) * share[:, None]).to(values.dtype), mask=live[:, None])
    high = tl.maximum(old, s)
    tl.store(new_lse + head * new_row + token, high + tl.log(tl.exp(old - high) + tl.exp(s - high)), mask=live)


def apply_sinks(o: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """o (tokens, heads, head_dim) · σ(lse − sink), and log(e^lse + e^sink) for lse (heads, tokens).

    Not in place: the compiler loads ``lse`` twice, in two layouts, and one warp would find what another has written.
    Flash attention lays ``o`` out as the queries were, which may be head by head.
    """
    tokens, heads, width = o.shape
    o = o.contiguous()
    new_o, new_lse = torch.empty_like(o), torch.empty_like(lse)
    _apply_sinks[(tokens,)](
        o, lse, sinks, new_o, new_lse, lse.stride(0), new_lse.stride(0), HEADS=heads, HP=next_power_of_2(heads),
        D=width, num_warps=4,
    )  # fmt: skip
    return new_o, new_lse
