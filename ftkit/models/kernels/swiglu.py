"""Triton kernels of a dense MLP's SwiGLU: each reads and writes its large tensors once."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LAUNCH: dict[str, int] = {"BI": 2048, "num_warps": 8}


@triton.jit
def _swiglu(h, act, width, h_row, BI: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BI + tl.arange(0, BI)
    inside = i < width
    gate = tl.load(h + row * h_row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h + row * h_row + width + i, mask=inside, other=0.0).to(tl.float32)
    made = up * gate / (1.0 + tl.exp(-gate))
    tl.store(act + row * width + i, made.to(act.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(h, dact, width, h_row, BI: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BI + tl.arange(0, BI)
    inside = i < width
    gates, ups, acts = h + row * h_row + i, h + row * h_row + width + i, dact + row * width + i
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(acts, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    tl.store(acts, (up * gate * sigmoid).to(dact.dtype.element_ty), mask=inside)
    dgate = gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(gates, dgate.to(h.dtype.element_ty), mask=inside)
    tl.store(ups, (gradient * gate * sigmoid).to(h.dtype.element_ty), mask=inside)


def swiglu(h: Tensor) -> Tensor:
    """up · silu(gate), (tokens, I), of h (tokens, 2 · I), gates before ups."""
    tokens, width = h.shape[0], h.shape[1] // 2
    act = h.new_empty(tokens, width)
    _swiglu[(tokens, triton.cdiv(width, LAUNCH["BI"]))](h, act, width, h.stride(0), **LAUNCH)
    return act


def swiglu_backward(h: Tensor, gradient: Tensor) -> None:
    """Write the gradient of h over it, and over the contiguous ``gradient`` of the activation the activation."""
    tokens, width = gradient.shape
    _swiglu_backward[(tokens, triton.cdiv(width, LAUNCH["BI"]))](h, gradient, width, h.stride(0), **LAUNCH)
