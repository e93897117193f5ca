"""Products in FP8 (E4M3, three bits of mantissa, largest number 448) for GPUs from Ada and Hopper on.

A matrix is held as numbers of E4M3 with one float32 scale for each row, and only products along rows are made, so that
scales leave the sum: ⟨sₐ·a, s_b·b⟩ = sₐ·s_b·⟨a, b⟩. What the matrix units sum, they sum in float32.
"""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2
from triton.tools.tensor_descriptor import TensorDescriptor

from ftkit.models.kernels.mxfp4 import numbers_of

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""E4M3's largest number."""
LAUNCH: dict[str, dict[str, int]] = {
    "product": {"BM": 128, "BN": 128, "BK": 128, "num_warps": 4, "num_stages": 3},
    "unpack": {"BM": 8, "BW": 128, "num_warps": 4},
    "unpack_across": {"BM": 64, "BW": 8, "num_warps": 4},
}
"""Block sizes and warps, chosen by measurement on an H200."""
WIDE = 8192
"""Columns of one matrix's product from which rows of tiles are computed in groups of eight, by the same measurement."""
POWERS = 14
"""Powers of two by which the scales of MXFP4's blocks in a row may differ, so that E4M3 holds the row exactly: from
6 · 2⁶ = 384 down to 0.5 · 2⁻⁸ = 2⁻⁹, E4M3's smallest."""


@dataclass(frozen=True)
class Quantized:
    """A matrix in E4M3: ``values`` (…, rows, columns) times ``scales`` (…, rows), float32."""

    values: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> Quantized:
        return cls(torch.empty(rows, columns, dtype=E4M3, device=device), torch.empty(rows, device=device))


@triton.jit
def scale_below(bound):
    """What makes a row with entries of at most ``bound`` E4M3's, and its scale, which takes that back."""
    bound = tl.maximum(bound, 1e-30)
    return 448.0 / bound, bound / 448.0


@triton.jit
def store_row(values, out, scales, row, d, D):
    """A row of a matrix in E4M3, from its entries in float32, zeros beyond D."""
    up_scale, down_scale = scale_below(tl.max(tl.abs(values), 0))
    tl.store(out + row * D + d, (values * up_scale).to(out.dtype.element_ty), mask=d < D)
    tl.store(scales + row, down_scale)


@triton.jit
def tile_of(pid, ends, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr):
    """Expert, first row and end of the rows of a program; the expert is E where there is nothing to do."""
    i = tl.arange(0, EP)
    end = tl.load(ends + i, mask=i < E, other=0)
    start = tl.load(ends + i - 1, mask=(i > 0) & (i < E), other=0)
    count = tl.where(i < E, (end - start + BM - 1) // BM, 0)
    upto = tl.cumsum(count, 0)
    expert = tl.sum(((upto <= pid) & (i < E)).to(tl.int32), 0)
    mine = i == expert
    row = tl.sum(tl.where(mine, start + (pid - (upto - count)) * BM, 0), 0)
    return expert, row, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit
def _quantize_rows(x, out, scales, D, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    store_row(values, out, scales, row, d, D)


def quantize_rows(x: Tensor) -> Quantized:
    """A contiguous (rows, D) matrix, its largest entry of each row exact."""
    rows, width = x.shape
    out, padded = Quantized.empty(rows, width, x.device), next_power_of_2(width)
    warps = min(max(padded // 1024, 4), 32)
    _quantize_rows[(rows,)](x, out.values, out.scales, width, BD=padded, num_warps=warps)
    return out


def quantize_weight(weight: Tensor) -> tuple[Quantized, int]:
    """A weight (…, rows, columns) with powers of two as scales, and how many rows are not exact so."""
    most = weight.abs().amax(-1).float()
    scales = torch.ldexp(torch.ones_like(most), torch.frexp(most / LARGEST).exponent)
    scaled = weight * (1 / scales)[..., None].to(weight.dtype)
    values = scaled.to(E4M3)
    rounded = int((values.to(weight.dtype) != scaled).any(-1).sum())
    return Quantized(values.contiguous(), scales), rounded


@triton.jit
def _unpack(
    words, scales, powers, out, rows, columns, word_expert, word_row, scale_expert, scale_row, power_expert,
    out_expert, out_row, ACROSS: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(1) * BM + tl.arange(0, BM))[:, None]
    column = (tl.program_id(0) * BW + tl.arange(0, BW))[None, :]
    live = (row < rows) & (column < columns)
    word = tl.load(words + expert * word_expert + row * word_row + column, mask=live, other=0)
    scale = tl.load(scales + expert * scale_expert + row * scale_row + column // 4, mask=live, other=0).to(tl.int32)
    power = tl.load(powers + expert * power_expert + (column // 4 if ACROSS else row), mask=live, other=0)
    factor = (tl.maximum(scale - power + 127, 0) << 23).to(tl.float32, bitcast=True)
    number = (numbers_of(word) * factor[:, :, None]).to(out.dtype.element_ty)
    if ACROSS:
        first = tl.program_id(0) * BW * 8 + tl.arange(0, BW * 8)[:, None]
        m = tl.program_id(1) * BM + tl.arange(0, BM)[None, :]
        turned = tl.trans(tl.reshape(number, (BM, BW * 8)))
        place = out + expert * out_expert + first.to(tl.int64) * out_row + m
        tl.store(place, turned, mask=(first < columns * 8) & (m < rows))
    else:
        place = out + expert * out_expert + row[:, :, None].to(tl.int64) * out_row + column[:, :, None] * 8
        tl.store(place + tl.arange(0, 8)[None, None, :], number, mask=live[:, :, None])


def unpack_mxfp4(blocks: Tensor, scales: Tensor, powers: Tensor, *, across: bool) -> Tensor:
    """Experts in MXFP4 as E4M3, each number divided by a power of two of its row in the result.

    Args:
        blocks: (E, rows, bytes), uint8, two codes to a byte, contiguous.
        scales: (E, rows, bytes / 16), uint8, contiguous.
        powers: int32, 127 more than the exponents: (E, rows), or with ``across`` (E, bytes / 16).
        across: whether the result is transposed.

    Returns:
        (E, rows, 2 · bytes), or with ``across`` (E, 2 · bytes, rows).
    """
    words, launch = blocks.view(torch.int32), LAUNCH["unpack_across" if across else "unpack"]
    experts, rows, width = words.shape
    shape = (experts, 8 * width, rows) if across else (experts, rows, 8 * width)
    out = torch.empty(shape, dtype=E4M3, device=blocks.device)
    _unpack[(triton.cdiv(width, launch["BW"]), triton.cdiv(rows, launch["BM"]), experts)](
        words, scales, powers, out, rows, width, *words.stride()[:2], *scales.stride()[:2], powers.stride(0),
        *out.stride()[:2], ACROSS=across, **launch,
    )  # fmt: skip
    return out


@triton.jit
def _product(
    a, b, a_scales, b_scales, thin, factor, bias, ends, out, largest, N, K, thin_row, f_expert, f_thin, f_out,
    BIASED: tl.constexpr, BOUNDED: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    pid, across = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), G * tl.num_programs(0)
    high = tl.minimum(G, tl.num_programs(1) - pid // across * G)
    expert, row, end = tile_of(pid // across * G + pid % across % high, ends, E, EP, BM)
    if expert < E:
        first = pid % across // high * BN
        sums = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            sums = tl.dot(a.load([row, k]), b.load([expert * N + first, k]).T, sums)
        rows, n = row + tl.arange(0, BM), first + tl.arange(0, BN)
        live, inside = rows < end, n < N
        wide = rows.to(tl.int64)[:, None]
        sums *= tl.load(a_scales + rows, mask=live, other=0.0)[:, None]
        sums *= tl.load(b_scales + expert * N + n, mask=inside, other=0.0)[None, :]
        if BIASED:
            sums += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        for r in tl.static_range(0, R, RB):
            j = r + tl.arange(0, RB)
            t = tl.load(thin + wide * thin_row + j[None, :], mask=live[:, None] & (j[None, :] < R), other=0.0)
            place = factor + expert.to(tl.int64) * f_expert + j[:, None] * f_thin + n[None, :] * f_out
            f = tl.load(place, mask=(j[:, None] < R) & inside[None, :], other=0.0)
            sums = tl.dot(t, f, sums)
        tl.store(out + wide * N + n[None, :], sums.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])
        if BOUNDED:
            tl.atomic_max(largest + rows, tl.max(tl.abs(sums), 1), mask=live)


def grouped_product(
    a: Quantized, weight: Quantized, thin: Tensor, factor: Tensor, ends: Tensor, *, bounded: bool = False
) -> tuple[Tensor, Tensor | None]:
    """a · weight[e]ᵀ + thin · factor[e] for the rows of each expert.

    Args:
        a: (S, K).
        weight: (E, N, K), contiguous.
        thin: (S, R), its last stride 1.
        factor: (E, R, N), any strides, of the same dtype as ``thin``, which the result has as well.
        ends: (E,), int32: where the rows of each expert end.
        bounded: whether to tell what the entries of each row are below.

    Returns:
        (S, N), and with ``bounded`` the bound, (S,), float32, which is the largest before rounding to ``thin``'s dtype.
    """
    rows = len(a.values)
    result = torch.empty(rows, weight.values.shape[1], dtype=thin.dtype, device=thin.device)
    largest = torch.zeros(rows, device=thin.device) if bounded else None
    whole = Quantized(weight.values.flatten(0, 1), weight.scales)
    _launch(a, whole, thin, factor, None, ends, result, largest, group=1)
    return result, largest


def product(
    a: Quantized, weight: Quantized, thin: Tensor | None, factor: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """a · weightᵀ + thin · factor + bias.

    Args:
        a: (S, K).
        weight: (N, K).
        thin: (S, R), contiguous.
        factor: (R, N), any strides.
        bias: (N,).
        dtype: of the result, of ``thin`` and of ``factor``.
    """
    (rows, _), (out, _), device = a.values.shape, weight.values.shape, a.scales.device
    result = torch.empty(rows, out, dtype=dtype, device=device)
    ends = torch.full((1,), rows, dtype=torch.int32, device=device)
    if thin is None or factor is None:
        thin, factor = result.new_empty(rows, 0), result.new_empty(0, out)
    _launch(a, weight, thin, factor[None], bias, ends, result, None, group=8 if out > WIDE else 1)
    return result


def _launch(
    a: Quantized, weight: Quantized, thin: Tensor, factor: Tensor, bias: Tensor | None, ends: Tensor, result: Tensor,
    largest: Tensor | None, group: int,
) -> None:  # fmt: skip
    (rows, out), (experts, extra, _), launch = result.shape, factor.shape, LAUNCH["product"]
    grid = triton.cdiv(out, launch["BN"]), triton.cdiv(rows, launch["BM"]) + experts
    _product[grid](
        TensorDescriptor.from_tensor(a.values, [launch["BM"], launch["BK"]]),
        TensorDescriptor.from_tensor(weight.values, [launch["BN"], launch["BK"]]),
        a.scales, weight.scales, thin, factor, bias, ends, result, largest, out, a.values.shape[1], thin.stride(0),
        *factor.stride(), BIASED=bias is not None, BOUNDED=largest is not None, R=extra,
        RB=min(max(16, next_power_of_2(extra)), 64), E=experts, EP=next_power_of_2(experts), G=group, **launch,
    )  # fmt: skip
