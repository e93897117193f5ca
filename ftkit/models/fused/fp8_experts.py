"""Experts with LoRA by grouped products in FP8, which Hopper multiplies twice as fast as bfloat16.

The frozen weights are in E4M3, once along the inputs and once along the outputs, since both operands of a product must
lie along what is summed: together two bytes a weight, as in bfloat16; or they stay in MXFP4 and are unpacked to E4M3
for each product. Weights of MXFP4 lose nothing either way. What is rounded are the rows that a product reads: tokens,
activations and their gradients, one scale a row. Adapters, biases and their gradients stay in the model's dtype: a
product adds xA · B and the bias to its sums, in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftkit.models.fused.experts import Factors, Layer, Routed, Side, adapter_gradients, in_backward
from ftkit.models.kernels import experts as kernels
from ftkit.models.kernels import fp8, glu
from ftkit.models.kernels.routing import gather_sum, sort_by_expert
from ftkit.models.mxfp4 import BLOCK


class Fp8Weight(ABC):
    """The weight of all experts in E4M3.

    Attributes:
        experts, width, out: E, in and out.
        extra: R of ``Factors``.
        rounded: rows, of E · (in + out), that E4M3 does not hold as they were.
    """

    experts: int
    width: int
    out: int
    extra: int
    rounded: int

    @abstractmethod
    def _by_input(self) -> fp8.Quantized:
        """(E, out, in)."""

    @abstractmethod
    def _by_output(self) -> fp8.Quantized:
        """(E, in, out)."""

    def factors(self, A: Tensor | None, B: Tensor | None, bias: Tensor) -> Factors:
        return Factors.empty(self.experts, self.width, self.out, self.extra, bias).fill(A, B, bias)

    def forward(
        self, x: fp8.Quantized, thin: Tensor, ends: Tensor, factors: Factors, *, bounded: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(S, in) → (S, out), and with ``bounded`` what each row is below."""
        return fp8.grouped_product(x, self._by_input(), thin, factors.rows, ends, bounded=bounded)

    def backward(
        self, g: fp8.Quantized, thin: Tensor, ends: Tensor, factors: Factors, *, bounded: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(S, out) → (S, in), and with ``bounded`` what each row is below."""
        return fp8.grouped_product(g, self._by_output(), thin, factors.columns.mT, ends, bounded=bounded)


class DenseFp8Weight(Fp8Weight):
    """A weight that lies in E4M3, by both of its sides.

    Args:
        weight: (E, in, out) parameter, (E, out, in) with ``transposed``; becomes one that takes no memory and holds no
            weights.
        extra: R.
    """

    def __init__(self, weight: torch.nn.Parameter, extra: int, *, transposed: bool = False):
        by_output = weight.detach().mT if transposed else weight.detach()
        self.experts, self.width, self.out = by_output.shape
        self.extra = extra
        self._inputs, rounded = fp8.quantize_weight(by_output.mT)
        self._outputs, rounded_too = fp8.quantize_weight(by_output)
        self.rounded = rounded + rounded_too
        weight.data = weight.new_zeros(()).expand(weight.shape)

    def _by_input(self) -> fp8.Quantized:
        return self._inputs

    def _by_output(self) -> fp8.Quantized:
        return self._outputs


class PackedFp8Weight(Fp8Weight):
    """A weight that stays in MXFP4 and is unpacked to E4M3 for each product.

    Args:
        blocks: (E, out, in / 2), uint8.
        scales: (E, out, in / 32), uint8.
        extra: R.
    """

    def __init__(self, blocks: Tensor, scales: Tensor, extra: int):
        self.experts, self.out, half = blocks.shape
        self.width, self.extra, self.rounded = 2 * half, extra, 0
        self._blocks, self._scales = blocks, scales
        self._powers: list[Tensor] = []
        for side, rows in ((2, 1), (1, BLOCK)):
            most, least = scales.amax(side).int(), scales.amin(side).int()
            self._powers.append((most - (fp8.POWERS - 8)).contiguous())
            self.rounded += rows * int((most - least > fp8.POWERS).sum())
        factors = [torch.ldexp(torch.ones_like(powers, dtype=torch.float32), powers - 127) for powers in self._powers]
        self._input_scales, self._output_scales = factors[0], factors[1].repeat_interleave(BLOCK, 1)

    def _by_input(self) -> fp8.Quantized:
        values = fp8.unpack_mxfp4(self._blocks, self._scales, self._powers[0], across=False)
        return fp8.Quantized(values, self._input_scales)

    def _by_output(self) -> fp8.Quantized:
        values = fp8.unpack_mxfp4(self._blocks, self._scales, self._powers[1], across=True)
        return fp8.Quantized(values, self._output_scales)


class Fp8Experts(torch.autograd.Function):
    """``FusedExperts`` with ``Fp8Weight``; what rounds, counts as if it did not in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: Tensor, index: Tensor,
        up_a: Tensor | None, up_b: Tensor | None, down_a: Tensor | None, down_b: Tensor | None,
        layer: Layer[Fp8Weight],
    ) -> Tensor:  # fmt: skip
        hidden, top_k, experts = hidden.contiguous(), index.shape[-1], layer.up.experts
        order, place, ends = sort_by_expert(index, experts)
        up = layer.up.factors(up_a, up_b, layer.up_bias)
        rank = 0 if up_a is None else up_a.shape[0] // experts
        x, thin = kernels.gather_project_quantized(
            hidden, fp8.quantize_rows(hidden), order, top_k, up.columns, ends, layer.up_scale, rank, one=True
        )
        h, largest = layer.up.forward(x, thin, ends, up, bounded=True)
        del x
        ctx.save_for_backward(hidden, thin, h, largest, weights, order, place, ends, up_a, up_b, down_a, down_b)
        ctx.layer = layer
        if in_backward():  # replayed for checkpointing: nobody reads the output
            return torch.empty_like(hidden)
        assert largest is not None
        down = layer.down.factors(down_a, down_b, layer.down_bias)
        rank = 0 if down_a is None else down_a.shape[0] // experts
        act, thin = glu.glu_project_quantized(h, largest, down.columns, ends, layer.down_scale, rank, layer.glu)
        y, _ = layer.down.forward(act, thin, ends, down)
        result = torch.empty_like(hidden)
        gather_sum(y, place, top_k, result, weight=weights.contiguous())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        layer, needs, gradient = ctx.layer, ctx.needs_input_grad, gradients[0].contiguous()
        hidden, up_thin, h, largest, weights, order, place, ends, up_a, up_b, down_a, down_b = ctx.saved_tensors
        top_k, experts = weights.shape[-1], layer.up.experts
        up, down = layer.up.factors(up_a, up_b, layer.up_bias), layer.down.factors(down_a, down_b, layer.down_bias)
        up_rank, down_rank = (0 if a is None else a.shape[0] // experts for a in (up_a, down_a))
        g, g_thin = kernels.gather_project_quantized(
            gradient, fp8.quantize_rows(gradient), order, top_k, down.rows.mT, ends, layer.down_scale, down_rank,
            one=False,
        )  # fmt: skip
        act, largest_dact = layer.down.backward(g, g_thin, ends, down, bounded=True)
        del g
        weight = weights.reshape(-1).float()[order]
        dh8, dthin, act_thin, dweight = glu.glu_backward_quantized(
            h, act, (largest, largest_dact), weight, g_thin[:, down_rank], down.columns, up.rows.mT, ends,
            layer.down_scale, layer.up_scale, up_rank, layer.glu,
        )  # fmt: skip
        dweights = dweight[place].view_as(weights).to(weights.dtype) if needs[1] else None
        routed = Routed(order, ends, top_k)
        of_down = adapter_gradients(
            down_a, down_b, routed, Side([act], g_thin), Side([gradient], act_thin, gathered=True), weight
        )
        del act
        of_up = adapter_gradients(up_a, up_b, routed, Side([hidden], dthin, gathered=True), Side([h], up_thin))
        del h
        dx = None
        if needs[0]:
            rows, _ = layer.up.backward(dh8, dthin, ends, up)
            dx = torch.empty_like(gradient)
            gather_sum(rows, place, top_k, dx)
        return dx, dweights, None, *of_up, *of_down, None
