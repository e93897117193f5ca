"""Triton kernels of a dense MLP's SwiGLU: each reads and writes its large tensors once, or also writes them in E4M3."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ftkit.models.kernels.fp8 import Quantized, scale_below

LAUNCH: dict[str, int] = {"BI": 2048, "num_warps": 8}


@triton.jit
def _read(h, row, i, width, h_row):
    """Gate and up of a row, in float32."""
    gate = tl.load(h + row * h_row + i, mask=i < width, other=0.0).to(tl.float32)
    return gate, tl.load(h + row * h_row + width + i, mask=i < width, other=0.0).to(tl.float32)


@triton.jit
def _made(gate, up):
    return up * gate / (1.0 + tl.exp(-gate))


@triton.jit
def _gradients(gate, up, gradient):
    """Of gate and up."""
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    return gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), gradient * gate * sigmoid


@triton.jit
def _swiglu(h, act, width, h_row, BI: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BI + tl.arange(0, BI)
    gate, up = _read(h, row, i, width, h_row)
    tl.store(act + row * width + i, _made(gate, up).to(act.dtype.element_ty), mask=i < width)


@triton.jit
def _swiglu_quantized(h, act, act8, scales, width, h_row, BI: tl.constexpr):
    """A whole row, read twice: for its largest entry first."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BI,), tl.float32)
    for first in range(0, width, BI):
        gate, up = _read(h, row, first + tl.arange(0, BI), width, h_row)
        most = tl.maximum(most, tl.abs(_made(gate, up)))
    up_scale, down_scale = scale_below(tl.max(most, 0))
    tl.store(scales + row, down_scale)
    for first in range(0, width, BI):
        i = first + tl.arange(0, BI)
        gate, up = _read(h, row, i, width, h_row)
        made = _made(gate, up)
        tl.store(act + row * width + i, made.to(act.dtype.element_ty), mask=i < width)
        tl.store(act8 + row * width + i, (made * up_scale).to(act8.dtype.element_ty), mask=i < width)


@triton.jit
def _swiglu_backward(h, dact, width, h_row, BI: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BI + tl.arange(0, BI)
    inside, gates, acts = i < width, h + row * h_row + i, dact + row * width + i
    gate, up = _read(h, row, i, width, h_row)
    dgate, dup = _gradients(gate, up, tl.load(acts, mask=inside, other=0.0).to(tl.float32))
    tl.store(acts, _made(gate, up).to(dact.dtype.element_ty), mask=inside)
    tl.store(gates, dgate.to(h.dtype.element_ty), mask=inside)
    tl.store(gates + width, dup.to(h.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_quantized(h, dact, h8, scales, width, h_row, BI: tl.constexpr):
    """As ``_swiglu_quantized``."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BI,), tl.float32)
    for first in range(0, width, BI):
        i = first + tl.arange(0, BI)
        gate, up = _read(h, row, i, width, h_row)
        gradient = tl.load(dact + row * width + i, mask=i < width, other=0.0).to(tl.float32)
        dgate, dup = _gradients(gate, up, gradient)
        most = tl.maximum(most, tl.maximum(tl.abs(dgate), tl.abs(dup)))
    up_scale, down_scale = scale_below(tl.max(most, 0))
    tl.store(scales + row, down_scale)
    for first in range(0, width, BI):
        i = first + tl.arange(0, BI)
        inside, gates, acts = i < width, h + row * h_row + i, dact + row * width + i
        gates8 = h8 + row * 2 * width + i
        gate, up = _read(h, row, i, width, h_row)
        dgate, dup = _gradients(gate, up, tl.load(acts, mask=inside, other=0.0).to(tl.float32))
        tl.store(acts, _made(gate, up).to(dact.dtype.element_ty), mask=inside)
        tl.store(gates, dgate.to(h.dtype.element_ty), mask=inside)
        tl.store(gates + width, dup.to(h.dtype.element_ty), mask=inside)
        tl.store(gates8, (dgate * up_scale).to(h8.dtype.element_ty), mask=inside)
        tl.store(gates8 + width, (dup * up_scale).to(h8.dtype.element_ty), mask=inside)


def swiglu(h: Tensor, *, fp8: bool = False) -> tuple[Tensor, Quantized | None]:
    """up · silu(gate), (tokens, I), of h (tokens, 2 · I), gates before ups; with ``fp8`` in E4M3 as well."""
    tokens, width = h.shape[0], h.shape[1] // 2
    act = h.new_empty(tokens, width)
    if fp8:
        act8 = Quantized.empty(tokens, width, h.device)
        _swiglu_quantized[(tokens,)](h, act, act8.values, act8.scales, width, h.stride(0), **LAUNCH)
        return act, act8
    _swiglu[(tokens, triton.cdiv(width, LAUNCH["BI"]))](h, act, width, h.stride(0), **LAUNCH)
    return act, None


def swiglu_backward(h: Tensor, gradient: Tensor, *, fp8: bool = False) -> Quantized | None:
    """Write the gradient of h over it, and over the contiguous ``gradient`` of the activation the activation.

    Returns:
        The gradient of h in E4M3, with ``fp8``.
    """
    tokens, width = gradient.shape
    if fp8:
        h8 = Quantized.empty(tokens, 2 * width, h.device)
        _swiglu_backward_quantized[(tokens,)](h, gradient, h8.values, h8.scales, width, h.stride(0), **LAUNCH)
        return h8
    _swiglu_backward[(tokens, triton.cdiv(width, LAUNCH["BI"]))](h, gradient, width, h.stride(0), **LAUNCH)
    return None
