"""Frozen linear weights in FP8, which Hopper multiplies twice as fast as bfloat16.

A weight lies in E4M3 twice, along its inputs and along its outputs, since both operands of a product must lie along
what is summed: together the two bytes a weight of bfloat16. The scales of its rows are powers of two, so that both hold
the same numbers, and the gradient is that of the rounded weight: they differ only in entries below 2⁻¹⁴ of the largest
beside them. What a product reads, tokens and gradients, is rounded with one scale a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ftkit.models.kernels import fp8


@dataclass(frozen=True)
class Rounding:
    """What rounding did to weights.

    Attributes:
        rows: of the weights, along their inputs.
        rounded: how many of them E4M3 does not hold as they were.
        error: sum of the squares of what was lost.
        norm: that of the weights.
    """

    rows: int
    rounded: int
    error: float
    norm: float

    @classmethod
    def together(cls, several: list[Rounding]) -> Rounding:
        """Of all of them."""
        return cls(
            sum(one.rows for one in several),
            sum(one.rounded for one in several),
            sum(one.error for one in several),
            sum(one.norm for one in several),
        )

    @property
    def share(self) -> float:
        """Of the rows that are rounded."""
        return self.rounded / max(self.rows, 1)

    @property
    def relative(self) -> float:
        """What was lost, as a share of the weights' norm."""
        return (self.error / max(self.norm, 1e-30)) ** 0.5


@dataclass(frozen=True)
class Fp8Linear:
    """A weight W (out, in): ``by_input`` (out, in) and ``by_output`` (in, out)."""

    by_input: fp8.Quantized
    by_output: fp8.Quantized

    @classmethod
    def of(cls, weight: Tensor) -> tuple[Fp8Linear, Rounding]:
        """A weight (out, in), rounded."""
        by_input, rounded = fp8.quantize_weight(weight)
        by_output, _ = fp8.quantize_weight(weight.t())
        lost = by_input.values.float() * by_input.scales[:, None] - weight
        rounding = Rounding(len(weight), rounded, lost.norm().item() ** 2, weight.float().norm().item() ** 2)
        return cls(by_input, by_output), rounding

    def forward(
        self, x: Tensor, x8: fp8.Quantized | None, bias: Tensor | None, thin: Tensor | None, b: Tensor | None
    ) -> Tensor:  # fmt: skip
        """x · Wᵀ + bias + thin · bᵀ, of x's dtype; ``x8`` is x in E4M3, where that is at hand."""
        x8, factor = x8 or fp8.quantize_rows(x.contiguous()), None if b is None else b.t()
        return fp8.product(x8, self.by_input, thin, factor, bias, x.dtype)

    def backward(
        self, dy: Tensor, dy8: fp8.Quantized | None, dthin: Tensor | None, a: Tensor | None
    ) -> Tensor:  # fmt: skip
        """dy · W + dthin · a; ``dy8`` as above."""
        dy8 = dy8 or fp8.quantize_rows(dy.contiguous())
        return fp8.product(dy8, self.by_output, dthin, a, None, dy.dtype)

    def part(self, rows: slice) -> Fp8Linear:
        """Of some of the outputs."""
        return Fp8Linear(
            fp8.Quantized(self.by_input.values[rows], self.by_input.scales[rows]),
            fp8.Quantized(self.by_output.values[:, rows], self.by_output.scales),
        )
