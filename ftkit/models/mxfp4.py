"""MXFP4, a format of expert weights: 4-bit floats in blocks of 32 that share a power of two.

Format: OCP Microscaling Formats (MX) Specification v1.0, sections 5.2, 5.3 and 6.3. Each block of ``BLOCK`` consecutive
numbers along the input dimension is stored as 32 E2M1 codes (sign, two bits of exponent, one of mantissa) and one
E8M0 scale, the exponent of a power of two with a bias of 127. Published checkpoints pack two codes to a byte, the
earlier one in the low half, and store the experts as (experts, out, in), transposed to how transformers holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Numbers that share one scale."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude of each code; the fourth bit is the sign."""

BIAS = 127
"""Stored scale minus the exponent of two that it stands for."""

_LARGEST_EXPONENT = 2  # of E2M1: 6 = 1.5 × 2²


def quantize_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to MXFP4, to the nearest code, ties to the even one.

    The scale of a block is the specification's, 2^(⌊log₂ max|w|⌋ − 2), or twice that where it leaves the smaller
    squared error: with the former alone, a block's largest numbers may be clipped by a quarter.

    Args:
        weight: (..., in, out), as transformers holds experts, floating point; ``in`` a multiple of 32.

    Returns:
        blocks: (..., out, in / 32, 16), uint8, two codes to a byte, the earlier one in the low half.
        scales: (..., out, in / 32), uint8, exponent of two plus 127.

    Raises:
        ValueError: ``in`` is no multiple of 32, or the weight holds infinities or NaN.
    """
    if weight.shape[-2] % BLOCK:
        raise ValueError(f"MXFP4 needs an input dimension that is a multiple of {BLOCK}, not {weight.shape[-2]}")
    if not weight.isfinite().all():
        raise ValueError("MXFP4 holds no infinities and no NaN, and the weight has some")
    numbers = (
        weight.detach().float().transpose(-1, -2).contiguous().unflatten(-1, (-1, BLOCK))
    )  # (..., out, in / 32, 32)
    largest = numbers.abs().amax(-1)
    exponent = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT
    exponent = torch.where(largest > 0, exponent, 0).clamp(-BIAS, BIAS - 1)
    narrow, wide = _codes(numbers, exponent), _codes(numbers, exponent + 1)
    better = _squared_error(numbers, wide, exponent + 1) < _squared_error(numbers, narrow, exponent)
    codes = torch.where(better[..., None], wide, narrow)
    scales = (exponent + better + BIAS).to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Unpack a weight; exact in bfloat16 and float32 over the range of trained weights.

    Args:
        blocks: (..., out, in / 32, 16), uint8, as ``quantize_mxfp4`` returns them.
        scales: (..., out, in / 32), uint8.
        dtype: of the result.

    Returns:
        (..., in, out), contiguous.
    """
    codes = torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(-2)
    numbers = _numbers(codes, scales.int() - BIAS)
    return numbers.flatten(-2).transpose(-1, -2).to(dtype).contiguous()


def _codes(numbers: Tensor, exponent: Tensor) -> Tensor:
    """(..., 32) numbers to (..., 32) codes of E2M1, uint8, given each block's exponent."""
    magnitude = torch.ldexp(numbers.abs(), -exponent[..., None]).clamp_(max=E2M1[-1])
    # Codes are 0.5 apart below 2, 1 apart below 4, then 2; torch rounds ties to even numbers, which are even codes.
    nearest = torch.where(
        magnitude < 2,
        (magnitude * 2).round_(),
        torch.where(magnitude < 4, magnitude.round() + 2, (magnitude / 2).round_() + 4),
    )
    return nearest.add_((numbers.signbit() & (nearest > 0)), alpha=8).to(torch.uint8)


def _numbers(codes: Tensor, exponent: Tensor) -> Tensor:
    """(..., 32) codes to (..., 32) float32 numbers."""
    values = torch.tensor([*E2M1, *(-v for v in E2M1)], device=codes.device)
    return torch.ldexp(values[codes.int()], exponent[..., None])


def _squared_error(numbers: Tensor, codes: Tensor, exponent: Tensor) -> Tensor:
    return (numbers - _numbers(codes, exponent)).square().sum(-1)
