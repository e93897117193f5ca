"""Triton kernels of RMS norms, alone and beside the residual sum, in E4M3 as well where a product reads them so."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from ftkit.models.kernels.fp8 import Quantized, store_row


@triton.jit
def _rms_norm(x, weight, y, values8, scales8, D, eps, QUANTIZED: tl.constexpr, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    scaled = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32) * (values * root)
    tl.store(y + row * D + d, scaled.to(y.dtype.element_ty), mask=d < D)
    if QUANTIZED:
        store_row(scaled, values8, scales8, row, d, D)


@triton.jit
def _add_rms_norm(
    x, delta, weight, total, y, values8, scales8, D, eps, QUANTIZED: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    values += tl.load(delta + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    stored = values.to(total.dtype.element_ty)
    tl.store(total + row * D + d, stored, mask=d < D)
    values = stored.to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    scaled = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32) * (values * root)
    tl.store(y + row * D + d, scaled.to(y.dtype.element_ty), mask=d < D)
    if QUANTIZED:
        store_row(scaled, values8, scales8, row, d, D)


@triton.jit
def _rms_norm_backward(x, weight, dy, dtotal, dx, D, eps, ADD: tl.constexpr, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    inside = d < D
    values = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    hat = values * root
    g = tl.load(dy + row * D + d, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    out = root * (g - hat * (tl.sum(g * hat, 0) / D))
    if ADD:
        out += tl.load(dtotal + row * D + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * D + d, out.to(dx.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, fp8: bool = False) -> tuple[Tensor, Quantized | None]:
    """x / √(mean x² + eps) · weight over the last dimension, with ``fp8`` in E4M3 as well; x contiguous."""
    y, (rows, width) = torch.empty_like(x), x.flatten(0, -2).shape
    y8 = Quantized.empty(rows, width, x.device) if fp8 else None
    _rms_norm[(rows,)](x, weight, y, *_parts(y8), width, eps, fp8, BD=next_power_of_2(width), num_warps=8)
    return y, y8


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, fp8: bool = False
) -> tuple[Tensor, Tensor, Quantized | None]:  # fmt: skip
    """x + delta, and its RMS norm, with ``fp8`` in E4M3 as well."""
    total, y, (rows, width) = torch.empty_like(x), torch.empty_like(x), x.flatten(0, -2).shape
    y8 = Quantized.empty(rows, width, x.device) if fp8 else None
    _add_rms_norm[(rows,)](
        x, delta, weight, total, y, *_parts(y8), width, eps, fp8, BD=next_power_of_2(width), num_warps=8
    )
    return total, y, y8


def _parts(y8: Quantized | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if y8 is None else (y8.values, y8.scales)


def rms_norm_backward(x: Tensor, weight: Tensor, dy: Tensor, dtotal: Tensor | None, eps: float) -> Tensor:
    """Gradient of x from that of its RMS norm, added to ``dtotal``, the gradient that reaches x past the norm."""
    dx, width = torch.empty_like(x), x.shape[-1]
    _rms_norm_backward[(x.numel() // width,)](
        x, weight, dy, dtotal, dx, width, eps, ADD=dtotal is not None, BD=next_power_of_2(width), num_warps=8
    )
    return dx
