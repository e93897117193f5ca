"""Triton kernels of queries and keys: an RMS norm of each head, where there is one, and the rotary embedding."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2


@triton.jit
def _turn(
    source, source_row, target, target_row, weight, cos, sin, angle_row, eps,
    HEADS: tl.constexpr, HP: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HP), tl.arange(0, HALF)
    live = head[:, None] < HEADS
    place = head[:, None] * (2 * HALF) + d[None, :]
    a = tl.load(source + token * source_row + place, mask=live, other=0.0).to(tl.float32)
    b = tl.load(source + token * source_row + place + HALF, mask=live, other=0.0).to(tl.float32)
    if NORM:
        root = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a *= root * tl.load(weight + d).to(tl.float32)[None, :]
        b *= root * tl.load(weight + HALF + d).to(tl.float32)[None, :]
    c = tl.load(cos + token * angle_row + d).to(tl.float32)[None, :]
    s = tl.load(sin + token * angle_row + d).to(tl.float32)[None, :]
    made = target + token * target_row + place
    tl.store(made, (a * c - b * s).to(target.dtype.element_ty), mask=live)
    tl.store(made + HALF, (b * c + a * s).to(target.dtype.element_ty), mask=live)


@triton.jit
def _turn_backward(
    gradient, gradient_row, source, source_row, target, target_row, weight, cos, sin, angle_row, eps,
    HEADS: tl.constexpr, HP: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HP), tl.arange(0, HALF)
    live = head[:, None] < HEADS
    place = head[:, None] * (2 * HALF) + d[None, :]
    first = tl.load(gradient + token * gradient_row + place, mask=live, other=0.0).to(tl.float32)
    second = tl.load(gradient + token * gradient_row + place + HALF, mask=live, other=0.0).to(tl.float32)
    c = tl.load(cos + token * angle_row + d).to(tl.float32)[None, :]
    s = tl.load(sin + token * angle_row + d).to(tl.float32)[None, :]
    da, db = first * c + second * s, second * c - first * s
    if NORM:
        a = tl.load(source + token * source_row + place, mask=live, other=0.0).to(tl.float32)
        b = tl.load(source + token * source_row + place + HALF, mask=live, other=0.0).to(tl.float32)
        root = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a, b = a * root, b * root
        da *= tl.load(weight + d).to(tl.float32)[None, :]
        db *= tl.load(weight + HALF + d).to(tl.float32)[None, :]
        along = ((tl.sum(da * a, 1) + tl.sum(db * b, 1)) / (2 * HALF))[:, None]
        da, db = root * (da - a * along), root * (db - b * along)
    made = target + token * target_row + place
    tl.store(made, da.to(target.dtype.element_ty), mask=live)
    tl.store(made + HALF, db.to(target.dtype.element_ty), mask=live)


def turn(source: Tensor, target: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> None:
    """Norm and rotate heads, halves side by side.

    Args:
        source: (tokens, heads, head_dim), last two dimensions contiguous.
        target: likewise; written.
        weight: (head_dim,), of the norm; None where there is none.
        cos, sin: (tokens, ≥ head_dim / 2), last stride 1.
    """
    tokens, heads, width = source.shape
    _turn[(tokens,)](
        source, source.stride(0), target, target.stride(0), weight, cos, sin, cos.stride(0), eps,
        **_sizes(heads, width, weight),
    )  # fmt: skip


def turn_backward(
    gradient: Tensor, source: Tensor, target: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> None:
    """Gradient of ``turn``'s source, into ``target``, from that of its result."""
    tokens, heads, width = source.shape
    _turn_backward[(tokens,)](
        gradient, gradient.stride(0), source, source.stride(0), target, target.stride(0), weight, cos, sin,
        cos.stride(0), eps, **_sizes(heads, width, weight),
    )  # fmt: skip


def _sizes(heads: int, width: int, weight: Tensor | None) -> dict[str, int | bool]:
    padded = next_power_of_2(heads)
    return {"HEADS": heads, "HP": padded, "HALF": width // 2, "NORM": weight is not None, "num_warps": 4}
