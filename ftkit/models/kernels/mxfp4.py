"""Triton kernel that unpacks MXFP4."""

# Triton's language is no Python that a type checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH = {"BM": 4, "BW": 256, "num_warps": 4}
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
    words, launch = blocks.view(torch.int32), LAUNCH
    experts, rows, width = words.shape
    _unpack_mxfp4[(triton.cdiv(width, launch["BW"]), triton.cdiv(rows, launch["BM"]), experts)](
        words, scales, out, rows, width, *words.stride()[:2], *scales.stride()[:2], *out.stride()[:2], **launch
    )
