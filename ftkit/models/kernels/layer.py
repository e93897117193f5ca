"""Triton kernels of what is not routed: unpacking MXFP4, embedding, norms, rotary embedding, sinks and the loss."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH: dict[str, dict[str, int]] = {
    "unpack_mxfp4": {"BM": 4, "BW": 256, "num_warps": 4},
    "loss_and_gradient": {"BV": 8192, "num_warps": 16},
}
"""Block sizes and warps, chosen by measurement on an H100."""


@triton.jit
def numbers_of(word):
    """The eight numbers of E2M1 in each int32 (…, …), as float32 (…, …, 8)."""
    # A code's exponent and mantissa, put where a float32 has its own, are the number divided by 2^126.
    code = word[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]
    return (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def _unpack_mxfp4(
    words, scales, out, rows, columns, word_expert, word_row, scale_expert, scale_row, out_expert, out_row,
    BM: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(1) * BM + tl.arange(0, BM))[:, None]
    column = (tl.program_id(0) * BW + tl.arange(0, BW))[None, :]
    live = (row < rows) & (column < columns)
    word = tl.load(words + expert * word_expert + row * word_row + column, mask=live, other=0)
    scale = tl.load(scales + expert * scale_expert + row * scale_row + column // 4, mask=live, other=0).to(tl.int32)
    # 2^(scale - 127) as a float32; 2^-127 is subnormal.
    power = tl.where(scale == 0, 1 << 22, scale << 23).to(tl.float32, bitcast=True)
    number = numbers_of(word) * power[:, :, None]
    place = (
        out + expert * out_expert + row[:, :, None] * out_row + column[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    )
    tl.store(place, number.to(out.dtype.element_ty), mask=live[:, :, None])


def unpack_mxfp4(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Unpack experts, equal to ``ftkit.models.mxfp4.dequantize_mxfp4`` transposed, bit for bit.

    Args:
        blocks: (E, rows, bytes), uint8, two codes to a byte; last stride 1, the others and the offset multiples of 4.
        scales: (E, rows, bytes / 16), uint8, last stride 1.
        out: (E, ≥ rows, ≥ 2 · bytes), last stride 1.
    """
    words, launch = blocks.view(torch.int32), LAUNCH["unpack_mxfp4"]
    experts, rows, width = words.shape
    _unpack_mxfp4[(triton.cdiv(width, launch["BW"]), triton.cdiv(rows, launch["BM"]), experts)](
        words, scales, out, rows, width, *words.stride()[:2], *scales.stride()[:2], *out.stride()[:2], **launch
    )


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
    _gather_rows[(ids.numel(),)](table, ids.contiguous(), out, table.shape[1], BD=_power(table.shape[1]), num_warps=4)
    return out


@triton.jit
def _rms_norm(x, weight, y, D, eps, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    values = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    scaled = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32) * (values * root)
    tl.store(y + row * D + d, scaled.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def _add_rms_norm(x, delta, weight, total, y, D, eps, BD: tl.constexpr):
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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight over the last dimension; x contiguous."""
    y, width = torch.empty_like(x), x.shape[-1]
    _rms_norm[(x.numel() // width,)](x, weight, y, width, eps, BD=_power(width), num_warps=8)
    return y


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and its RMS norm."""
    total, y, width = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    _add_rms_norm[(x.numel() // width,)](x, delta, weight, total, y, width, eps, BD=_power(width), num_warps=8)
    return total, y


def rms_norm_backward(x: Tensor, weight: Tensor, dy: Tensor, dtotal: Tensor | None, eps: float) -> Tensor:
    """Gradient of x from that of its RMS norm, added to ``dtotal``, the gradient that reaches x past the norm."""
    dx, width = torch.empty_like(x), x.shape[-1]
    _rms_norm_backward[(x.numel() // width,)](
        x, weight, dy, dtotal, dx, width, eps, ADD=dtotal is not None, BD=_power(width), num_warps=8
    )
    return dx


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
        source, source.stride(0), target, target.stride(0), cos, sin, HEADS=heads, HP=_power(heads), HALF=width // 2,
        SIGN=-1.0 if back else 1.0, PLAIN=plain, num_warps=4,
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
        o, lse, sinks, new_o, new_lse, lse.stride(0), new_lse.stride(0), HEADS=heads, HP=_power(heads), D=width,
        num_warps=4,
    )  # fmt: skip
    return new_o, new_lse


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
    _loss_and_gradient[(rows,)](logits, target, loss, vocabulary, logits.stride(0), **LAUNCH["loss_and_gradient"])


def _power(n: int) -> int:
    return triton.next_power_of_2(n)
