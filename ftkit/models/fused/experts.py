"""Experts with LoRA as few grouped products, for CUDA GPUs; ``lora_experts`` holds the plain version.

A base weight W (in, out), its bias b and its adapter A (in, r), B (r, out) with scale s are one matrix that has R more
rows and columns, R ≥ r + 1:

    Ŵ = ⎡ W  A ⎤      [x, s·xA, 1] · Ŵ[:, :out] = xW + s·xAB + b
        ⎢ B  0 ⎥      [g, s·gBᵀ, ·] · Ŵ[:in]ᵀ    = gWᵀ + s·gBᵀAᵀ
        ⎣ b  0 ⎦

so that one grouped product gives the adapted projection, and one its whole gradient with respect to x. The thin
products xA and gBᵀ are made by the kernels that write x and g in the experts' order anyway. The output y of the second
projection is not needed in the backward pass: the gradient of the routing weight, ⟨g, y⟩, is ⟨gŴᵀ, a⟩ + ⟨g, b⟩ for the
activation a. So a replay for checkpointing stops after the first projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from ftkit.models.fused.layers import in_backward
from ftkit.models.kernels import experts as kernels
from ftkit.models.kernels import glu
from ftkit.models.kernels.glu import Glu
from ftkit.models.kernels.mxfp4 import unpack_mxfp4
from ftkit.models.kernels.routing import gather_sum, sort_by_expert


def extra_columns(*ranks: int) -> int:
    """R for these ranks: one more for the bias, and aligned for the matrix units."""
    return -(-(max(ranks, default=0) + 1) // 16) * 16


@dataclass(frozen=True)
class Factors:
    """An adapter as Ŵ holds it.

    Attributes:
        rows: (E, R, out): B, bias, zeros.
        columns: (E, in, R): A, zeros.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def empty(cls, experts: int, width: int, out: int, extra: int, like: Tensor) -> Factors:
        """Zeros, (E, R, out) and (E, in, R)."""
        return cls(like.new_zeros(experts, extra, out), like.new_zeros(experts, width, extra))

    def fill(self, A: Tensor | None, B: Tensor | None, bias: Tensor) -> Factors:
        """Write PEFT's A (r · E, in), B (out, r · E) and the bias (E, out)."""
        experts, _, out = self.rows.shape
        rank = 0
        if A is None or B is None:
            self.rows.zero_()
            self.columns.zero_()
        else:
            rank = A.shape[0] // experts
            self.rows[:, :rank].copy_(B.detach().view(out, rank, experts).permute(2, 1, 0))
            self.columns[..., :rank].copy_(A.detach().view(experts, rank, -1).transpose(1, 2))
        self.rows[:, rank].copy_(bias)
        return self


class DenseWeight:
    """Ŵ of all experts in bfloat16.

    Args:
        weight: (E, in, out) parameter, (E, out, in) with ``transposed``; becomes a view of Ŵ.
        extra: R.
    """

    def __init__(self, weight: torch.nn.Parameter, extra: int, *, transposed: bool = False):
        experts, *sides = weight.shape
        extended = weight.new_zeros(experts, *(side + extra for side in sides))
        inside = extended[:, : sides[0], : sides[1]]
        inside.copy_(weight.detach())
        weight.data = inside
        self.experts, (self.width, self.out) = experts, reversed(sides) if transposed else sides
        self.extended = extended.mT if transposed else extended
        self._held: tuple[int, int] | None = None
        self._factors = Factors(self.extended[:, self.width :, : self.out], self.extended[:, : self.width, self.out :])

    def factors(self, A: Tensor | None, B: Tensor | None, bias: Tensor) -> Factors:
        held = None if A is None or B is None else (A.data_ptr(), B.data_ptr())
        if not in_backward() or held != self._held:  # a reference without adapters may have computed in between
            self._factors.fill(A, B, bias)
            self._held = held
        return self._factors

    def forward(self, x: Tensor, ends: Tensor, factors: Factors, *, roomy: bool = False) -> Iterator[Tensor]:
        """(S, in + R) → (S, out), or with ``roomy`` R columns wider."""
        yield grouped_mm(x, self.extended if roomy else self.extended[:, :, : self.out], offs=ends)

    def backward(self, pieces: list[Tensor], ends: Tensor, factors: Factors) -> Iterator[Tensor]:
        """[(S, out + R)], which it takes out of the list → (S, in)."""
        yield grouped_mm(pieces.pop(), self.extended[:, : self.width].transpose(1, 2), offs=ends)

    backward_by_input = backward


class PackedWeight:
    """Ŵ of all experts, its base kept in MXFP4 and unpacked for each product, a part at a time.

    Args:
        blocks: (E, out, in / 2), uint8.
        scales: (E, out, in / 32), uint8.
        extra: R.
        parts: number of them.
    """

    def __init__(self, blocks: Tensor, scales: Tensor, extra: int, parts: int):
        self.blocks, self.scales, self.extra, self.parts = blocks, scales, extra, parts
        self.experts, self.out, half = blocks.shape
        self.width = 2 * half

    def factors(self, A: Tensor | None, B: Tensor | None, bias: Tensor) -> Factors:
        return Factors.empty(self.experts, self.width, self.out, self.extra, bias).fill(A, B, bias)

    def forward(self, x: Tensor, ends: Tensor, factors: Factors, *, roomy: bool = False) -> Iterator[Tensor]:
        """(S, in + R) → (S, out / parts) each, with ``roomy`` the last R columns wider."""
        whole = slice(0, self.width)
        for part in self._split(self.out):
            yield grouped_mm(x, self._unpacked(part, whole, factors, rows=True, columns=roomy).mT, offs=ends)

    def backward(self, pieces: list[Tensor], ends: Tensor, factors: Factors) -> Iterator[Tensor]:
        """(S, out / parts) each, the last R columns wider → (S, in) each; their sum is the gradient."""
        whole = slice(0, self.width)
        for part in self._split(self.out):
            yield grouped_mm(pieces.pop(0), self._unpacked(part, whole, factors, columns=True), offs=ends)

    def backward_by_input(self, pieces: list[Tensor], ends: Tensor, factors: Factors) -> Iterator[Tensor]:
        """[(S, out + R)], which it takes out of the list → (S, in / parts) each."""
        gradient, whole = pieces.pop(), slice(0, self.out)
        for part in self._split(self.width):
            yield grouped_mm(gradient, self._unpacked(whole, part, factors, columns=True), offs=ends)

    def _split(self, size: int) -> list[slice]:
        step = size // self.parts
        return [slice(i * step, (i + 1) * step) for i in range(self.parts)]

    def _unpacked(
        self, out: slice, inner: slice, factors: Factors, *, rows: bool = False, columns: bool = False
    ) -> Tensor:
        """A part of Ŵᵀ, (E, out, in), with ``rows`` and ``columns`` of ``Factors``, the latter where ``out`` ends."""
        height, width = out.stop - out.start, inner.stop - inner.start
        below = self.extra if columns and out.stop == self.out else 0
        beside = self.extra if rows else 0
        whole = factors.rows.new_empty(self.experts, height + below, width + beside)
        packed = slice(inner.start // 2, inner.stop // 2), slice(inner.start // 32, inner.stop // 32)
        unpack_mxfp4(self.blocks[:, out, packed[0]], self.scales[:, out, packed[1]], whole)
        if rows:
            whole[:, :height, width:] = factors.rows[..., out].transpose(1, 2)
        if below:
            whole[:, height:, :width] = factors.columns[:, inner].transpose(1, 2)
        if rows and below:
            whole[:, height:, width:] = 0
        return whole


Weight = TypeVar("Weight")


@dataclass(frozen=True)
class Layer(Generic[Weight]):
    """What the experts of a layer compute with beside tensors that are trained.

    Attributes:
        up, down: first and second projection.
        up_bias, down_bias: (E, 2 · I) and (E, hidden).
        up_scale, down_scale: of the adapters.
        glu: what stands between both projections.
    """

    up: Weight
    down: Weight
    up_bias: Tensor
    down_bias: Tensor
    up_scale: float
    down_scale: float
    glu: Glu


class FusedExperts(torch.autograd.Function):
    """``apply(hidden, top_k_weights, top_k_index, up A, up B, down A, down B, Layer)`` → (tokens, hidden).

    hidden is (tokens, hidden) in bfloat16, weights and indices (tokens, top_k); the adapters are PEFT's, float32, or
    None. All of them but the indices get their exact gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: Tensor, index: Tensor,
        up_a: Tensor | None, up_b: Tensor | None, down_a: Tensor | None, down_b: Tensor | None,
        layer: Layer[DenseWeight | PackedWeight],
    ) -> Tensor:  # fmt: skip
        hidden, top_k, experts = hidden.contiguous(), index.shape[-1], layer.up.experts
        order, place, ends = sort_by_expert(index, experts)
        up = layer.up.factors(up_a, up_b, layer.up_bias)
        rank = 0 if up_a is None else up_a.shape[0] // experts
        x = kernels.gather_project(hidden, order, top_k, up.columns, ends, layer.up_scale, rank, one=True)
        pieces = list(layer.up.forward(x, ends, up, roomy=True))
        thin = x[:, hidden.shape[1] :].contiguous()
        del x
        ctx.save_for_backward(hidden, thin, *pieces, weights, order, place, ends, up_a, up_b, down_a, down_b)
        ctx.layer = layer
        if in_backward():  # replayed for checkpointing: nobody reads the output
            return torch.empty_like(hidden)
        down = layer.down.factors(down_a, down_b, layer.down_bias)
        rank = 0 if down_a is None else down_a.shape[0] // experts
        act = glu.glu_project(pieces, down.columns, ends, layer.down_scale, rank, layer.glu)
        result, start = torch.empty_like(hidden), 0
        for y in layer.down.forward(act, ends, down):
            part = result[:, start : start + y.shape[1]]
            gather_sum(y, place, top_k, part, weight=weights.contiguous())
            start += y.shape[1]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        layer, needs, gradient = ctx.layer, ctx.needs_input_grad, gradients[0].contiguous()
        x, up_thin, *pieces, weights, order, place, ends, up_a, up_b, down_a, down_b = ctx.saved_tensors
        top_k, hidden, experts = weights.shape[-1], gradient.shape[-1], layer.up.experts
        up, down = layer.up.factors(up_a, up_b, layer.up_bias), layer.down.factors(down_a, down_b, layer.down_bias)
        up_rank, down_rank = (0 if a is None else a.shape[0] // experts for a in (up_a, down_a))
        g = [
            kernels.gather_project(
                gradient, order, top_k, down.rows.transpose(1, 2), ends, layer.down_scale, down_rank, one=False
            )
        ]
        g_thin = g[0][:, hidden:].contiguous()
        weight = weights.reshape(-1).float()[order]
        act, act_thin, dweight = glu.glu_backward(
            pieces, layer.down.backward_by_input(g, ends, down), weight, g_thin[:, down_rank], down.columns,
            up.rows.transpose(1, 2), ends, layer.down_scale, layer.up_scale, up_rank, layer.glu,
        )  # fmt: skip
        dweights = dweight[place].view_as(weights).to(weights.dtype) if needs[1] else None
        routed = Routed(order, ends, top_k)
        of_down = adapter_gradients(
            down_a, down_b, routed, Side(act, g_thin), Side([gradient], act_thin, gathered=True), weight
        )
        del act
        width = layer.up.out // len(pieces)
        of_up = adapter_gradients(
            up_a, up_b, routed, Side([x], pieces[-1][:, width:], gathered=True), Side(pieces, up_thin)
        )
        dx = None
        if needs[0]:
            dx = torch.empty_like(gradient)
            for i, part in enumerate(layer.up.backward(pieces, ends, up)):
                gather_sum(part, place, top_k, dx, add=i > 0)
        return dx, dweights, None, *of_up, *of_down, None


@dataclass(frozen=True)
class FusedLayer:
    """A layer's experts as one function of (hidden, top_k_weights, top_k_index, up A, up B, down A, down B)."""

    function: type[torch.autograd.Function]
    layer: Layer[Any]

    def __call__(self, *given: Tensor | None) -> Tensor:
        result = self.function.apply(*given, self.layer)
        assert isinstance(result, Tensor)
        return result


@dataclass(frozen=True)
class Routed:
    """How tokens lie in the experts' order.

    Attributes:
        order: (S,), of tokens · top_k.
        ends: (E,), where the rows of each expert end.
        top_k: of the router.
    """

    order: Tensor
    ends: Tensor
    top_k: int


@dataclass(frozen=True)
class Side:
    """Rows and what they are multiplied by for the gradient of A or B.

    Attributes:
        rows: (S, width / n) each, n pieces beside each other; or (tokens, width), one that is ``gathered``.
        thin: (S, ≥ r).
        gathered: the rows are the tokens', and are read in the experts' order.
    """

    rows: list[Tensor]
    thin: Tensor
    gathered: bool = False


def adapter_gradients(
    a: Tensor | None, b: Tensor | None, routed: Routed, of_a: Side, of_b: Side, weight: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of PEFT's A (r · E, in) and B (out, r · E); None of what is not there.

    Args:
        of_a: the projection's input, and s · gBᵀ for the gradient g of its output.
        of_b: g, and s · xA for the input x.
        weight: (S,), of the rows.
    """
    if a is None or b is None:
        return None, None
    experts, gradients = len(routed.ends), (torch.empty_like(a), torch.empty_like(b))
    by_expert = (  # (E, in, r) and (E, out, r)
        gradients[0].view(experts, -1, a.shape[1]).transpose(1, 2),
        gradients[1].view(b.shape[0], -1, experts).permute(2, 0, 1),
    )
    for side, whole in zip((of_a, of_b), by_expert, strict=True):
        gathered = {"order": routed.order, "top_k": routed.top_k} if side.gathered else {}
        for rows, part in zip(side.rows, whole.chunk(len(side.rows), 1), strict=True):
            kernels.thin_gradient(rows, side.thin, routed.ends, part, weight=weight, **gathered)
    return gradients
