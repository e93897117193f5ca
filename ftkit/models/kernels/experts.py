"""Triton kernels over routed rows: each reads and writes its large tensors once.

Routed rows are the tokens' copies for each expert that they visit, sorted by expert: expert e owns the rows from
``ends[e - 1]`` to ``ends[e]``. A program of the kernels by ``tile_of`` works on rows of one expert. Nothing is summed
with atomics, so results repeat bit for bit.

``R`` is the number of extra columns (see ``ftkit.models.fused.experts``), ``r`` the rank. Where a kernel also
writes in E4M3, each row has a scale; it comes from a bound of what the row may hold, known before it is made: numbers
of E4M3 are as exact at a hundredth of the largest as at the largest.
"""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from ftkit.models.kernels.fp8 import Quantized, tile_of

LAUNCH: dict[str, dict[str, int]] = {
    "gather_project": {"BM": 32, "BD": 64, "num_warps": 4, "num_stages": 1},
    "thin_gradient": {"BS": 64, "BD": 128, "num_warps": 4, "num_stages": 3},
}
"""Block sizes and warps, chosen by measurement on an H100."""


def _tiles(kernel: str, rows: int, experts: int) -> tuple[int]:
    """Programs that cover all experts' rows, however they are distributed; some find nothing to do."""
    return (triton.cdiv(rows, LAUNCH[kernel]["BM"]) + experts,)


@triton.jit
def _gather_project(
    x, order, P, ends, source, source_scales, out, out_scales, thin, K, D, x_row, p_expert, p_in, p_out, out_row,
    thin_row, scale, rank,
    ONE: tl.constexpr, QUANTIZED: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    expert, row, end = tile_of(tl.program_id(0), ends, E, EP, BM)
    if expert < E:
        rows = row + tl.arange(0, BM)
        live = rows < end
        token = tl.load(order + rows, mask=live, other=0) // K
        wide = rows.to(tl.int64)[:, None]
        if QUANTIZED:
            tl.store(out_scales + rows, tl.load(source_scales + token, mask=live), mask=live)
        token = token.to(tl.int64)[:, None] * x_row
        target = out + wide * out_row
        j = tl.arange(0, RP)
        factor = P + expert.to(tl.int64) * p_expert + j[None, :] * p_out
        sums = tl.zeros((BM, RP), tl.float32)
        for d0 in range(0, D, BD):
            d = d0 + tl.arange(0, BD)
            whole = live[:, None] & (d[None, :] < D)
            values = tl.load(x + token + d[None, :], mask=whole, other=0.0)
            if QUANTIZED:
                tl.store(target + d[None, :], tl.load(source + token + d[None, :], mask=whole), mask=whole)
            else:
                tl.store(target + d[None, :], values, mask=whole)
            p = tl.load(factor + d[:, None] * p_in, mask=(d[:, None] < D) & (j[None, :] < R), other=0.0)
            sums = tl.dot(values, p.to(values.dtype), sums)
        sums = tl.where(j[None, :] < rank, sums * scale, sums) + tl.where(j[None, :] == rank, ONE, 0.0)
        narrow = live[:, None] & (j[None, :] < R)
        tl.store(thin + wide * thin_row + j[None, :], sums.to(thin.dtype.element_ty), mask=narrow)


def gather_project(
    x: Tensor, order: Tensor, top_k: int, factor: Tensor, ends: Tensor, scale: float, rank: int, one: bool
) -> Tensor:
    """Rows of tokens in the experts' order, with their thin products beside them.

    Args:
        x: (tokens, D).
        order: (S,), routed row → token × top_k + choice.
        factor: (E, D, R), any strides.
        scale: of the first ``rank`` products.
        one: adds 1 to column ``rank`` of the products, for the bias.

    Returns:
        (S, D + R): [x, x · factor].
    """
    rows, width, extra = order.numel(), x.shape[1], factor.shape[2]
    out = torch.empty(rows, width + extra, dtype=x.dtype, device=x.device)
    _launch_gather_project(x, order, top_k, factor, ends, scale, rank, one, x, None, out, None, out[:, width:])
    return out


def gather_project_quantized(
    x: Tensor, quantized: Quantized, order: Tensor, top_k: int, factor: Tensor, ends: Tensor, scale: float, rank: int,
    one: bool,
) -> tuple[Quantized, Tensor]:  # fmt: skip
    """``gather_project`` of rows that are in E4M3 as well.

    Args:
        quantized: x, (tokens, D).

    Returns:
        x in the experts' order, (S, D), and x · factor, (S, R), made from x itself.
    """
    rows, extra = order.numel(), factor.shape[2]
    out = Quantized.empty(rows, x.shape[1], x.device)
    thin = torch.empty(rows, extra, dtype=x.dtype, device=x.device)
    source, target = (quantized.values, quantized.scales), (out.values, out.scales)
    _launch_gather_project(x, order, top_k, factor, ends, scale, rank, one, *source, *target, thin)
    return out, thin


def _launch_gather_project(
    x: Tensor, order: Tensor, top_k: int, factor: Tensor, ends: Tensor, scale: float, rank: int, one: bool,
    source: Tensor, source_scales: Tensor | None, out: Tensor, out_scales: Tensor | None, thin: Tensor,
) -> None:  # fmt: skip
    experts, width, extra = factor.shape
    assert source.stride() == x.stride()
    _gather_project[_tiles("gather_project", order.numel(), experts)](
        x, order, factor, ends, source, source_scales, out, out_scales, thin, top_k, width, x.stride(0),
        *factor.stride(), out.stride(0), thin.stride(0), scale, rank, ONE=float(one),
        QUANTIZED=out_scales is not None, R=extra, RP=next_power_of_2(extra), E=experts, EP=next_power_of_2(experts),
        **LAUNCH["gather_project"],
    )  # fmt: skip


@triton.jit
def _thin_gradient(
    x, t, order, weight, ends, out, K, D, x_row, t_row, out_expert, out_d, out_j, rank,
    GATHERED: tl.constexpr, WEIGHTED: tl.constexpr, RP: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    j = tl.arange(0, RP)
    sums = tl.zeros((BD, RP), tl.float32)
    for s0 in range(start, end, BS):
        rows = s0 + tl.arange(0, BS)
        live = rows < end
        wide = rows.to(tl.int64)
        source = (tl.load(order + rows, mask=live, other=0) // K).to(tl.int64) if GATHERED else wide
        big = tl.load(x + source[:, None] * x_row + d[None, :], mask=live[:, None] & (d[None, :] < D), other=0.0)
        small = tl.load(t + wide[:, None] * t_row + j[None, :], mask=live[:, None] & (j[None, :] < rank), other=0.0)
        if WEIGHTED:
            small = (small.to(tl.float32) * tl.load(weight + rows, mask=live, other=0.0)[:, None]).to(big.dtype)
        sums = tl.dot(tl.trans(big), small, sums)
    target = out + expert * out_expert + d[:, None].to(tl.int64) * out_d + j[None, :] * out_j
    tl.store(target, sums, mask=(d[:, None] < D) & (j[None, :] < rank))


def thin_gradient(
    x: Tensor, t: Tensor, ends: Tensor, out: Tensor, *, weight: Tensor | None = None, order: Tensor | None = None,
    top_k: int = 1,
) -> None:  # fmt: skip
    """out[e] = Σ over e's rows of weight · xᵀ t.

    Args:
        x: (S, D), or (tokens, D) with ``order``, routed row → token × top_k + choice; its last stride is 1.
        t: (S, ≥ r); its last stride is 1.
        out: (E, D, r), float32, any strides; written, zeros where an expert has no rows.
        weight: (S,), float32.
    """
    experts, width, rank = out.shape
    _thin_gradient[(triton.cdiv(width, LAUNCH["thin_gradient"]["BD"]), experts)](
        x, t, order, weight, ends, out, top_k, width, x.stride(0), t.stride(0), *out.stride(), rank,
        GATHERED=order is not None, WEIGHTED=weight is not None, RP=max(16, next_power_of_2(rank)),
        **LAUNCH["thin_gradient"],
    )  # fmt: skip
