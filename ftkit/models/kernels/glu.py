"""Triton kernels of the gated unit between an expert's two projections, over routed rows, forward and backward.

``ftkit.models.kernels.experts`` says what routed rows, ``R``, ``r`` and the scales of E4M3 are.
"""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from ftkit.models.kernels.fp8 import Quantized, scale_below, tile_of

LAUNCH: dict[str, dict[str, int]] = {
    "glu_project": {"BM": 32, "BC": 64, "num_warps": 8},
    "glu_backward": {"BM": 32, "BC": 32, "num_warps": 2, "num_stages": 4},
}
"""Block sizes and warps, chosen by measurement: those of ``glu_project`` on an H100, of ``glu_backward`` on an H200."""


@dataclass(frozen=True)
class Glu:
    """(up + offset) · gate · σ(alpha · gate), of gate below ``limit`` and up between it and −limit.

    Attributes:
        halves: all gates come before all ups; else they take turns.
    """

    limit: float
    alpha: float
    offset: float
    halves: bool


SWIGLU = Glu(limit=float("inf"), alpha=1.0, offset=0.0, halves=True)
"""up · silu(gate)."""


def _tiles(kernel: str, rows: int, experts: int) -> tuple[int]:
    """Programs that cover all experts' rows, however they are distributed; some find nothing to do."""
    return (triton.cdiv(rows, LAUNCH[kernel]["BM"]) + experts,)


@triton.jit
def _glu(gate, up, limit, alpha):
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    sigmoid = 1.0 / (1.0 + tl.exp(-alpha * gate))
    return gate, up, sigmoid


@triton.jit
def _glu_input(largest, limit, alpha):
    """What |up| and |gate · σ(alpha · gate)| are below, of a row whose entries are below ``largest``: x · σ(alpha · x)
    is above −0.28 / alpha."""
    return tl.minimum(largest, tl.maximum(limit, 0.28 / alpha))


@triton.jit
def _glu_project(
    h, A, ends, largest, out, out_scales, thin, sums_buffer, columns, first, h_row, a_expert, a_in, a_out, out_row,
    thin_row, scale, rank, limit, alpha, offset,
    HALVES: tl.constexpr, QUANTIZED: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    expert, row, end = tile_of(tl.program_id(0), ends, E, EP, BM)
    if expert < E:
        rows = row + tl.arange(0, BM)
        live = rows < end
        source = h + rows.to(tl.int64)[:, None] * h_row
        target = out + rows.to(tl.int64)[:, None] * out_row
        if QUANTIZED:
            most = _glu_input(tl.load(largest + rows, mask=live, other=0.0), limit, alpha)
            up_scale, down_scale = scale_below((most + offset) * most)
            tl.store(out_scales + rows, down_scale, mask=live)
        j = tl.arange(0, RP)
        factor = A + expert.to(tl.int64) * a_expert + j[None, :] * a_out
        kept = sums_buffer + rows.to(tl.int64)[:, None] * RP + j[None, :]
        if FIRST:  # noqa: SIM108  (only one side may be compiled)
            sums = tl.zeros((BM, RP), tl.float32)
        else:
            sums = tl.load(kept, mask=live[:, None], other=0.0)
        for c0 in range(0, columns, BC):
            c = c0 + tl.arange(0, BC)
            inside = c < columns
            if HALVES:
                here = live[:, None] & inside[None, :]
                gate = tl.load(source + c[None, :], mask=here, other=0.0)
                up = tl.load(source + columns + c[None, :], mask=here, other=0.0)
            else:
                c2 = 2 * c0 + tl.arange(0, 2 * BC)
                both = tl.load(source + c2[None, :], mask=live[:, None] & (c2[None, :] < 2 * columns), other=0.0)
                gate, up = tl.split(tl.reshape(both, (BM, BC, 2)))
            gate, up, sigmoid = _glu(gate.to(tl.float32), up.to(tl.float32), limit, alpha)
            exact = (up + offset) * gate * sigmoid
            act = exact.to(h.dtype.element_ty)
            stored = (exact * up_scale[:, None]).to(out.dtype.element_ty) if QUANTIZED else act
            tl.store(target + first + c[None, :], stored, mask=live[:, None] & inside[None, :])
            a = tl.load(factor + (first + c)[:, None] * a_in, mask=inside[:, None] & (j[None, :] < R), other=0.0)
            act = tl.where(inside[None, :], act, 0.0)
            sums = tl.dot(act, a.to(act.dtype), sums)
        if LAST:
            sums = tl.where(j[None, :] < rank, sums * scale, sums) + tl.where(j[None, :] == rank, 1.0, 0.0)
            narrow = live[:, None] & (j[None, :] < R)
            target = thin + rows.to(tl.int64)[:, None] * thin_row
            tl.store(target + j[None, :], sums.to(thin.dtype.element_ty), mask=narrow)
        else:
            tl.store(kept, sums, mask=live[:, None])


def glu_project(pieces: list[Tensor], factor: Tensor, ends: Tensor, scale: float, rank: int, glu: Glu) -> Tensor:
    """The gated unit of gates and ups, with its thin product beside it.

    Args:
        pieces: (S, ≥ 2 · I / pieces) each: gate and up of consecutive columns of the result; one, where they come in
            halves.
        factor: (E, I, R).

    Returns:
        (S, I + R): [a, scale · a · factor, 1, 0 …] with a as ``Glu`` says.
    """
    assert len(pieces) == 1 or not glu.halves
    (experts, width, extra), rows = factor.shape, pieces[0].shape[0]
    out = torch.empty(rows, width + extra, dtype=pieces[0].dtype, device=factor.device)
    columns, padded = width // len(pieces), next_power_of_2(extra)
    sums = torch.empty(rows if len(pieces) > 1 else 0, padded, dtype=torch.float32, device=factor.device)
    for i, piece in enumerate(pieces):
        _glu_project[_tiles("glu_project", rows, experts)](
            piece, factor, ends, None, out, None, out[:, width:], sums, columns, i * columns, piece.stride(0),
            *factor.stride(), out.stride(0), out.stride(0), scale, rank, **_settings(glu), QUANTIZED=False,
            FIRST=i == 0, LAST=i == len(pieces) - 1, R=extra, RP=padded, E=experts, EP=next_power_of_2(experts),
            **LAUNCH["glu_project"],
        )  # fmt: skip
    return out


def glu_project_quantized(
    h: Tensor, largest: Tensor, factor: Tensor, ends: Tensor, scale: float, rank: int, glu: Glu
) -> tuple[Quantized, Tensor]:
    """``glu_project`` into E4M3.

    Args:
        h: (S, 2 · I).
        largest: (S,), float32: no entry of a row of h is larger.

    Returns:
        a, (S, I), and [scale · a · factor, 1, 0 …], (S, R), made from a before it is rounded.
    """
    (experts, width, extra), rows = factor.shape, h.shape[0]
    out = Quantized.empty(rows, width, h.device)
    thin = torch.empty(rows, extra, dtype=h.dtype, device=h.device)
    _glu_project[_tiles("glu_project", rows, experts)](
        h, factor, ends, largest, out.values, out.scales, thin, thin, width, 0, h.stride(0), *factor.stride(), width,
        extra, scale, rank, **_settings(glu), QUANTIZED=True, FIRST=True, LAST=True, R=extra, RP=next_power_of_2(extra),
        E=experts, EP=next_power_of_2(experts), **LAUNCH["glu_project"],
    )  # fmt: skip
    return out, thin


@triton.jit
def _glu_backward(
    h, v, weight, bias_dot, A, B, ends, largest_h, largest_v, out, out_scales, thin, dthin, dweight, t_sums, dt_sums,
    columns, first, h_row, v_row, bias_row, a_expert, a_in, a_out, b_expert, b_in, b_out, dthin_row,
    a_scale, b_scale, b_rank, limit, alpha, offset,
    HALVES: tl.constexpr, QUANTIZED: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    expert, row, end = tile_of(tl.program_id(0), ends, E, EP, BM)
    if expert < E:
        rows = row + tl.arange(0, BM)
        live = rows < end
        wide = rows.to(tl.int64)[:, None]
        j = tl.arange(0, RP)
        a_factor = A + expert.to(tl.int64) * a_expert + j[None, :] * a_out
        b_factor = B + expert.to(tl.int64) * b_expert + j[None, :] * b_out
        t_kept, dt_kept = t_sums + wide * RP + j[None, :], dt_sums + wide * RP + j[None, :]
        w = tl.load(weight + rows, mask=live, other=0.0).to(tl.float32)
        if QUANTIZED:
            most = _glu_input(tl.load(largest_h + rows, mask=live, other=0.0), limit, alpha)
            dmost = tl.load(largest_v + rows, mask=live, other=0.0) * tl.abs(w)
            # The derivative of x · σ(alpha · x) is below 1.1.
            up_scale, down_scale = scale_below(1.1 * (most + offset) * dmost)
            tl.store(out_scales + rows, down_scale, mask=live)
        if FIRST:
            t = tl.zeros((BM, RP), tl.float32)
            dt = tl.zeros((BM, RP), tl.float32)
            dw = tl.load(bias_dot + rows.to(tl.int64) * bias_row, mask=live, other=0.0).to(tl.float32)
        else:
            t = tl.load(t_kept, mask=live[:, None], other=0.0)
            dt = tl.load(dt_kept, mask=live[:, None], other=0.0)
            dw = tl.load(dweight + rows, mask=live, other=0.0)
        for c0 in range(0, columns, BC):
            c = c0 + tl.arange(0, BC)
            inside = c < columns
            here = live[:, None] & inside[None, :]
            c2 = 2 * c0 + tl.arange(0, 2 * BC)
            both_live = live[:, None] & (c2[None, :] < 2 * columns)
            if HALVES:
                gate = tl.load(h + wide * h_row + c[None, :], mask=here, other=0.0)
                up = tl.load(h + wide * h_row + columns + c[None, :], mask=here, other=0.0)
            else:
                both = tl.load(h + wide * h_row + c2[None, :], mask=both_live, other=0.0)
                gate, up = tl.split(tl.reshape(both, (BM, BC, 2)))
            gate, up = gate.to(tl.float32), up.to(tl.float32)
            gate_passes, up_passes = gate <= limit, (up <= limit) & (up >= -limit)
            gate, up, sigmoid = _glu(gate, up, limit, alpha)
            dact = tl.load(v + wide * v_row + c[None, :], mask=here, other=0.0).to(tl.float32)
            act = (up + offset) * gate * sigmoid
            dw += tl.sum(dact * act, 1)
            act = act.to(v.dtype.element_ty)
            tl.store(v + wide * v_row + c[None, :], act, mask=here)
            a = tl.load(a_factor + (first + c)[:, None] * a_in, mask=inside[:, None] & (j[None, :] < R), other=0.0)
            t = tl.dot(act, a.to(act.dtype), t)
            dact = dact * w[:, None]
            dgate = dact * (up + offset) * sigmoid * (1.0 + alpha * gate * (1.0 - sigmoid))
            dgate = tl.where(gate_passes, dgate, 0.0)
            dup = tl.where(up_passes, dact * gate * sigmoid, 0.0)
            if HALVES:
                if QUANTIZED:
                    gates = out + wide * 2 * columns + c[None, :]
                    tl.store(gates, (dgate * up_scale[:, None]).to(out.dtype.element_ty), mask=here)
                    tl.store(gates + columns, (dup * up_scale[:, None]).to(out.dtype.element_ty), mask=here)
                dgate, dup = dgate.to(h.dtype.element_ty), dup.to(h.dtype.element_ty)
                tl.store(h + wide * h_row + c[None, :], dgate, mask=here)
                tl.store(h + wide * h_row + columns + c[None, :], dup, mask=here)
                adapted = inside[:, None] & (j[None, :] < b_rank)
                b = tl.load(b_factor + c[:, None] * b_in, mask=adapted, other=0.0)
                dt = tl.dot(dgate, b.to(dgate.dtype), dt)
                b = tl.load(b_factor + (columns + c)[:, None] * b_in, mask=adapted, other=0.0)
                dt = tl.dot(dup, b.to(dup.dtype), dt)
            else:
                dh = tl.reshape(tl.join(dgate, dup), (BM, 2 * BC))
                if QUANTIZED:
                    stored = (dh * up_scale[:, None]).to(out.dtype.element_ty)
                    tl.store(out + wide * 2 * columns + c2[None, :], stored, mask=both_live)
                dh = dh.to(h.dtype.element_ty)
                tl.store(h + wide * h_row + c2[None, :], dh, mask=both_live)
                b = tl.load(
                    b_factor + (2 * first + c2)[:, None] * b_in,
                    mask=(c2[:, None] < 2 * columns) & (j[None, :] < b_rank), other=0.0,
                )  # fmt: skip
                dt = tl.dot(dh, b.to(dh.dtype), dt)
        tl.store(dweight + rows, dw, mask=live)
        if LAST:
            narrow = live[:, None] & (j[None, :] < R)
            tl.store(dthin + wide * dthin_row + j[None, :], (dt * b_scale).to(h.dtype.element_ty), mask=narrow)
            tl.store(thin + wide * R + j[None, :], (t * a_scale).to(thin.dtype.element_ty), mask=narrow)
        else:
            tl.store(t_kept, t, mask=live[:, None])
            tl.store(dt_kept, dt, mask=live[:, None])


def glu_backward(
    pieces: list[Tensor], gradients: Iterable[Tensor], weight: Tensor, bias_dot: Tensor, A: Tensor, B: Tensor,
    ends: Tensor, a_scale: float, b_scale: float, b_rank: int, glu: Glu,
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Backward of ``glu_project`` and of the routing weight that multiplies what comes of it.

    ``pieces``, as ``glu_project`` had them, are overwritten with their gradient; the last one, which is R columns
    wider, gets b_scale · gradient · B in these.

    Args:
        gradients: of the activation before the routing weight, (S, I / pieces) for each piece; asked for one by one.
        weight: (S,), routing weights, float32.
        bias_dot: (S,), any stride: the gradient's product with the bias of the second projection.
        A: (E, I, R), adapter of the second projection.
        B: (E, 2 · I, R), adapter of the first; its first ``b_rank`` columns count.

    Returns:
        Activation in pieces, over ``gradients``; a_scale · activation · A (S, R); gradient of the routing weight (S,),
        float32.
    """
    (experts, width, extra), rows, device = A.shape, weight.shape[0], weight.device
    thin = torch.empty(rows, extra, dtype=pieces[0].dtype, device=device)
    dweight = torch.empty(rows, dtype=torch.float32, device=device)
    columns, padded, last = width // len(pieces), next_power_of_2(extra), len(pieces) - 1
    t, dt = torch.empty(2, rows if last else 0, padded, dtype=torch.float32, device=device)
    activations, gradients = [], iter(gradients)
    for i, piece in enumerate(pieces):
        activations.append(v := next(gradients))
        _glu_backward[_tiles("glu_backward", rows, experts)](
            piece, v, weight, bias_dot, A, B, ends, None, None, None, None, thin, piece[:, 2 * columns :], dweight, t,
            dt, columns, i * columns, piece.stride(0), v.stride(0), bias_dot.stride(0), *A.stride(), *B.stride(),
            piece.stride(0), a_scale, b_scale, b_rank, **_settings(glu), QUANTIZED=False,
            FIRST=i == 0, LAST=i == last, R=extra, RP=padded, E=experts, EP=next_power_of_2(experts),
            **LAUNCH["glu_backward"],
        )  # fmt: skip
    return activations, thin, dweight


def glu_backward_quantized(
    h: Tensor, gradient: Tensor, largest: tuple[Tensor, Tensor], weight: Tensor, bias_dot: Tensor, A: Tensor,
    B: Tensor, ends: Tensor, a_scale: float, b_scale: float, b_rank: int, glu: Glu,
) -> tuple[Quantized, Tensor, Tensor, Tensor]:  # fmt: skip
    """``glu_backward`` whose gradient is in E4M3 as well; ``gradient`` becomes the activation, h its gradient.

    Args:
        h: (S, 2 · I).
        gradient: of the activation before the routing weight, (S, I).
        largest: (S,) each, float32: no entry of a row of h and of ``gradient`` is larger.

    Returns:
        h's gradient, (S, 2 · I); b_scale · that · B, (S, R), made before it is rounded; a_scale · activation · A,
        (S, R); gradient of the routing weight, (S,), float32.
    """
    (experts, width, extra), rows = A.shape, h.shape[0]
    out = Quantized.empty(rows, 2 * width, h.device)
    thin, dthin = torch.empty(2, rows, extra, dtype=h.dtype, device=h.device)
    dweight = torch.empty(rows, dtype=torch.float32, device=h.device)
    _glu_backward[_tiles("glu_backward", rows, experts)](
        h, gradient, weight, bias_dot, A, B, ends, *largest, out.values, out.scales, thin, dthin, dweight, thin, thin,
        width, 0, h.stride(0), gradient.stride(0), bias_dot.stride(0), *A.stride(), *B.stride(), extra,
        a_scale, b_scale, b_rank, **_settings(glu), QUANTIZED=True, FIRST=True, LAST=True, R=extra,
        RP=next_power_of_2(extra), E=experts, EP=next_power_of_2(experts), **LAUNCH["glu_backward"],
    )  # fmt: skip
    return out, dthin, thin, dweight


def _settings(glu: Glu) -> dict[str, float | bool]:
    return {"limit": glu.limit, "alpha": glu.alpha, "offset": glu.offset, "HALVES": glu.halves}
