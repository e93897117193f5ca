"""The fused path without a GPU: Triton's interpreter in place of its compiler, plain torch in place of flash attention.

    TRITON_INTERPRET=1 python tests/helpers/interpreted.py checks
    TRITON_INTERPRET=1 python tests/helpers/interpreted.py train CONFIG TOKENS OUT CHECKPOINTS

``checks`` runs those of ``scripts/check_gpu`` in float32 and at small sizes; ``train`` a training with fused=True.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton import language as tl
from triton.runtime import interpreter

from helpers.scripts import load_script

LIMIT = 1e-5


def main() -> None:
    torch.set_num_threads(1)
    stand_in_for_a_gpu()
    what, *paths = sys.argv[1:]
    checks() if what == "checks" else train_fused(*map(Path, paths))


def checks() -> None:
    """Raises SystemExit, naming the checks that are too far off."""
    from ftkit.models import loss_head
    from ftkit.models.kernels import fp8 as kernels_fp8
    from ftkit.models.kernels import vocabulary

    check = load_script("check_gpu")
    check.DTYPE, check.LIMIT = torch.float32, LIMIT
    torch.manual_seed(0)
    shape = (4, 2, 96, 64)
    check.experts("rank 4", tokens=33, ranks=(4, 4), shape=shape)
    check.experts("rank 20", tokens=9, ranks=(20, 20), shape=shape)
    check.experts("one token", tokens=1, shape=shape)
    check.experts("all tokens to the same experts", tokens=40, same=True, shape=shape)
    check.experts("gate_up_proj alone", tokens=9, ranks=(8, 0), shape=shape)
    check.experts("down_proj alone", tokens=9, ranks=(0, 8), shape=shape)
    check.experts("no adapter", tokens=9, ranks=(0, 0), shape=shape)
    check.experts("after an optimiser step", tokens=9, update=True, shape=shape)
    check.experts("without adapters in between", tokens=9, reference=True, shape=shape)
    check.experts("MXFP4, without adapters in between", tokens=9, reference=True, parts=2, shape=shape)
    check.experts("MXFP4", tokens=9, parts=2, shape=shape)
    kernels_fp8.LAUNCH["product"] |= {"BM": 16, "BN": 32, "BK": 32}
    kernels_fp8.WIDE = 100
    check.fp8_unpacking()
    check.fp8_products(tokens=30, width=96, out=48)
    check.experts("FP8, rank 4", tokens=33, ranks=(4, 4), shape=shape, fp8=True)
    check.experts("FP8 from MXFP4", tokens=9, ranks=(4, 4), shape=shape, fp8=True, parts=1)
    check.experts("FP8, few tokens, no adapter", tokens=9, ranks=(0, 0), shape=shape, fp8=True)
    for window, lengths in itertools.product((None, 8), ([10, 3, 21, 1], [17])):
        check.attention(lengths, window, shape=(4, 2, 16), repeats=1)
    check.rotary([10, 3, 21, 1], normed=False, shape=(4, 2, 16))
    check.rotary([10, 3, 21, 1], normed=True, shape=(4, 2, 16))
    for ranks in ((8, 4), (0, 4), (8, 0), (0, 0)):
        check.swiglu_mlp(f"ranks {ranks}", tokens=9, ranks=ranks, shape=(96, 64))
        check.swiglu_experts(f"ranks {ranks}", tokens=33, ranks=ranks, shape=shape)
    for ranks in ((8, 4), (0, 0)):
        check.swiglu_mlp(f"FP8, ranks {ranks}", tokens=9, ranks=ranks, shape=(96, 64), fp8=True)
    check.swiglu_experts("FP8", tokens=9, shape=shape, fp8=True)
    for family in ("llama", "qwen3"):
        check.whole_model(family, [5, 3], width=32, heads=(4, 2, 16))
    check.whole_model("mistral", [5, 3], width=32, heads=(4, 2, 16), window=2)
    check.norms(tokens=5, width=96)
    check.projection(tokens=33, width=96, out=64, rank=4)
    check.projection(tokens=33, width=96, out=112, rank=4, fp8=True)
    check.projection(tokens=5, width=96, out=48, rank=80, fp8=True)
    check.linear_rounding(width=96)
    check.whole_model("qwen3", [5, 3], width=32, heads=(4, 2, 16), fp8=True)
    loss_head._loss_and_gradient = vocabulary.loss_and_gradient
    check.loss(tokens=12, rows=7, width=96, vocabulary=9000)
    check.unpacking()
    check.embedding(width=96)
    check.DTYPE, check.LIMIT = torch.bfloat16, 2e-2  # experts are fused in it alone
    check.whole_model("qwen3_moe", [5, 3], width=32, heads=(4, 2, 16))
    check.whole_model("qwen3_moe", [5, 3], width=32, heads=(4, 2, 16), on_experts=False)
    if check.failed:
        sys.exit(f"{len(check.failed)} too far off: {', '.join(check.failed)}")


def train_fused(config: Path, tokens: Path, out: Path, checkpoints: Path) -> None:
    from ftkit.config.resolve import load_frozen
    from ftkit.models import gpt_oss, swiglu
    from ftkit.training.train import train

    gpt_oss.why_plain = swiglu.why_plain = lambda *_: None
    train(load_frozen(config), tokens=tokens, out=out, checkpoints=checkpoints)


def stand_in_for_a_gpu() -> None:
    """What the kernels and their callers need of one; few programs, which run one after another."""
    from ftkit.models.kernels import mxfp4, routing

    routing.LAUNCH["sort_by_expert"] = {"BLOCKS": 2}
    mxfp4.LAUNCH |= {"BM": 64, "BW": 16}
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_attention, "CPU")
    library.impl("_flash_attention_backward", flash_attention_backward, "CPU")
    stand_in_for_a_gpu.kept = library  # pyright: ignore  (it ends with its last reference)
    empty = torch.empty
    torch.empty = lambda *sizes, pin_memory=False, **options: empty(*sizes, **options)
    mend_rounding()


def mend_rounding() -> None:
    """Triton 3.7's interpreter multiplies bfloat16's bits as integers, and rounds to it and to E4M3 wrongly."""
    from ftkit.models.kernels.fp8 import E4M3

    convert, create_dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    formats = {tl.bfloat16: (torch.bfloat16, torch.int16, np.uint16), tl.float8e4nv: (E4M3, torch.uint8, np.uint8)}

    def converted(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source != tl.float32 or target not in formats:
            return convert(values, source, target, rounding)
        dtype, bits, found = formats[target]
        rounded = torch.from_numpy(np.ascontiguousarray(values).view(np.float32)).to(dtype)
        return rounded.view(bits).numpy().view(found)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        for operand in (a, b):
            if operand.data.dtype == np.uint16:
                operand.data = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return create_dot(self, a, b, *rest)

    interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = converted, dot


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: Any, scale: float, window_size_left: int | None = None,
    **__: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(tokens, heads, head_dim) → the same, and log Σ e^score, (heads, tokens)."""
    scores = causal_scores(q, k, bounds, scale, window_size_left)
    o = scores.softmax(-1) @ per_head(v, q)
    unused = q.new_zeros(())
    return laid_out_as(q, o), scores.logsumexp(-1).float(), unused, unused, unused


def flash_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, bounds: Tensor, *_: Any, scale: float,
    window_size_left: int | None = None, **__: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As the original, from ``o`` and ``lse`` as they are given, which need not be those of the forward pass."""
    shares = (causal_scores(q, k, bounds, scale, window_size_left) - lse.double()[..., None]).exp()
    do, o, groups = per_head(gradient, q), per_head(o, q), (k.shape[1], -1)
    dscores = shares * (do @ per_head(v, q).mT - (do * o).sum(-1, keepdim=True)) * scale
    dq, dk, dv = dscores @ per_head(k, q), dscores.mT @ per_head(q, q), shares.mT @ do
    grads = dq, *(t.unflatten(0, groups).sum(1) for t in (dk, dv))
    return tuple(laid_out_as(*pair) for pair in zip((q, k, v), grads, strict=True))


def laid_out_as(given: Tensor, result: Tensor) -> Tensor:
    """A result (heads, tokens, head_dim) in ``given``'s order, precision and layout, as the original's are."""
    return torch.empty_like(given).copy_(result.transpose(0, 1))


def causal_scores(q: Tensor, k: Tensor, bounds: Tensor, scale: float, left: int | None) -> Tensor:
    """(heads, tokens, tokens) in float64, −∞ where a token does not see another."""
    token = torch.arange(len(q))
    document = torch.bucketize(token, bounds[1:], right=True)
    apart = token[:, None] - token[None, :]
    seen = (apart >= 0) & (document[:, None] == document[None, :])
    if left is not None:
        seen &= apart <= left
    return (per_head(q, q) @ per_head(k, q).mT * scale).masked_fill(~seen, float("-inf"))


def per_head(t: Tensor, q: Tensor) -> Tensor:
    """(tokens, heads, head_dim) as (query heads, tokens, head_dim) in float64."""
    return t.double().transpose(0, 1).repeat_interleave(q.shape[1] // t.shape[1], 0)


if __name__ == "__main__":
    main()
