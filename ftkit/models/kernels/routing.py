"""Triton kernels of routing: the order in which routed rows lie, and their sums back in the tokens' order.

What happens to the rows in between is in ``ftkit.models.kernels.experts``, which says what routed rows are.
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

LAUNCH: dict[str, dict[str, int]] = {"gather_sum": {"BD": 1024, "num_warps": 4}, "sort_by_expert": {"BLOCKS": 128}}
"""Block sizes and warps, chosen by measurement on an H100."""


@triton.jit
def _count(ids, counts, S, span, E: tl.constexpr, EP: tl.constexpr, BS: tl.constexpr):
    block, e = tl.program_id(0), tl.arange(0, EP)
    found = tl.zeros((EP,), tl.int32)
    for s0 in range(block * span, tl.minimum((block + 1) * span, S), BS):
        s = s0 + tl.arange(0, BS)
        expert = tl.load(ids + s, mask=s < S, other=E)
        found += tl.sum((expert[:, None] == e[None, :]).to(tl.int32), 0)
    tl.store(counts + block * EP + e, found)


@triton.jit
def _place(
    ids, counts, order, place, ends, S, span, E: tl.constexpr, EP: tl.constexpr, BLOCKS: tl.constexpr, BS: tl.constexpr
):  # fmt: skip
    block, e, b = tl.program_id(0), tl.arange(0, EP), tl.arange(0, BLOCKS)
    count = tl.load(counts + b[:, None] * EP + e[None, :])
    total = tl.sum(count, 0)
    end = tl.cumsum(total, 0)
    if block == 0:
        tl.store(ends + e, end, mask=e < E)
    base = end - total + tl.sum(tl.where(b[:, None] < block, count, 0), 0)
    for s0 in range(block * span, tl.minimum((block + 1) * span, S), BS):
        s = s0 + tl.arange(0, BS)
        expert = tl.load(ids + s, mask=s < S, other=E)
        mine = (expert[:, None] == e[None, :]).to(tl.int32)
        row = tl.sum(mine * (base[None, :] + tl.cumsum(mine, 0) - 1), 1)
        tl.store(place + s, row, mask=s < S)
        tl.store(order + row, s, mask=s < S)
        base += tl.sum(mine, 0)


def sort_by_expert(index: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """A stable sort of few distinct numbers, by counting.

    Args:
        index: (tokens, top_k), each token's experts.

    Returns:
        order (S,), routed row → token × top_k + choice; place (S,), its inverse; ends (E,), all int32.
    """
    ids, blocks, step = index.reshape(-1), LAUNCH["sort_by_expert"]["BLOCKS"], 64
    size, padded, new = ids.numel(), next_power_of_2(experts), {"dtype": torch.int32, "device": index.device}
    counts = torch.empty(blocks, padded, **new)
    order, place, ends = (torch.empty(n, **new) for n in (size, size, experts))
    span = triton.cdiv(size, blocks * step) * step
    _count[(blocks,)](ids, counts, size, span, E=experts, EP=padded, BS=step, num_warps=4)
    _place[(blocks,)](
        ids, counts, order, place, ends, size, span, E=experts, EP=padded, BLOCKS=blocks, BS=step, num_warps=4
    )
    return order, place, ends


@triton.jit
def _gather_sum(
    y, place, weight, out, K, D, y_row, out_row, WEIGHTED: tl.constexpr, ADD: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    target = out + token.to(tl.int64) * out_row + d
    sums = tl.zeros((BD,), tl.float32)
    if ADD:
        sums += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    for k in range(K):
        row = tl.load(place + token * K + k).to(tl.int64)
        values = tl.load(y + row * y_row + d, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weight + token * K + k).to(tl.float32)
        sums += values
    tl.store(target, sums.to(out.dtype.element_ty), mask=inside)


def gather_sum(
    y: Tensor, place: Tensor, top_k: int, out: Tensor, *, weight: Tensor | None = None, add: bool = False
) -> None:
    """Back to the tokens' order: the sum of each token's routed rows.

    Args:
        y: (S, D), last stride 1.
        place: (S,), token × top_k + choice → routed row.
        out: (tokens, D), last stride 1; written, or with ``add`` added to.
        weight: (S,) or (tokens, top_k), contiguous, in the tokens' order.
    """
    tokens, width = out.shape
    _gather_sum[(tokens, triton.cdiv(width, LAUNCH["gather_sum"]["BD"]))](
        y, place, weight, out, top_k, width, y.stride(0), out.stride(0), WEIGHTED=weight is not None, ADD=add,
        **LAUNCH["gather_sum"],
    )  # fmt: skip
