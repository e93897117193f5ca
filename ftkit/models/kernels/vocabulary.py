"""Triton kernels over the vocabulary: rows of the embedding, and the loss with its gradient."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

LAUNCH = {"BV": 8192, "num_warps": 16}
"""Block size and warps of the loss, chosen by measurement on an H100."""


@triton.jit
def _gather_rows(table, ids, out, D, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    values = tl.load(table + tl.load(ids + row) * D + d, mask=d < D)
    tl.store(out + row * D + d, values, mask=d < D)


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a contiguous (N, D) table that the GPU can read, page-locked memory of the host included.

    Args:
        ids: int64, of any shape (…), on the GPU.

    Returns:
        (…, D), on the GPU.
    """
    out = torch.empty(*ids.shape, table.shape[1], dtype=table.dtype, device=ids.device)
    _gather_rows[(ids.numel(),)](
        table, ids.contiguous(), out, table.shape[1], BD=next_power_of_2(table.shape[1]), num_warps=4
    )
    return out


@triton.jit
def _loss_and_gradient(logits, target, loss, V, row_stride, BV: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride
    high = tl.full((BV,), float("-inf"), tl.float32)
    sums = tl.zeros((BV,), tl.float32)
    for v0 in range(0, V, BV):
        v = v0 + tl.arange(0, BV)
        x = tl.load(base + v, mask=v < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(high, x)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        sums = sums * tl.exp(high - safe) + tl.exp(x - safe)
        high = higher
    top = tl.max(high, 0)
    lse = top + tl.log(tl.sum(sums * tl.exp(high - top), 0))
    label = tl.load(target + row)
    tl.store(loss + row, lse - tl.load(base + label).to(tl.float32))
    tl.debug_barrier()
    for v0 in range(0, V, BV):
        v = v0 + tl.arange(0, BV)
        x = tl.load(base + v, mask=v < V, other=float("-inf")).to(tl.float32)
        p = tl.exp(x - lse) - tl.where(v == label, 1.0, 0.0)
        tl.store(base + v, p.to(logits.dtype.element_ty), mask=v < V)


def loss_and_gradient(logits: Tensor, target: Tensor, loss: Tensor) -> None:
    """Cross entropy of each row into ``loss`` (rows,), float32, and its gradient over the logits in their place.

    Args:
        logits: (rows, vocabulary); overwritten with softmax − one-hot.
        target: (rows,), int64.
    """
    rows, vocabulary = logits.shape
    _loss_and_gradient[(rows,)](logits, target, loss, vocabulary, logits.stride(0), **LAUNCH)
