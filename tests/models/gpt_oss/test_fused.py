"""The fused path on the CPU, by Triton's interpreter: kernels against eager float32, and whole trainings.

What only a GPU shows, how the compiler and bfloat16 treat them, is ``scripts/check_gpu``'s.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.interpreter import Interpreted
from helpers.runs import Run
from helpers.small_model import save_mxfp4_copy, save_small_model, save_token_rows, small_run

from ftkit.config.resolve import freeze
from ftkit.models.gpt_oss.fast_path import PARTS
from ftkit.models.mxfp4 import BLOCK
from ftkit.serving.endpoint.adapter_effect import Effect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WIDE = {"hidden_size": 64, "intermediate_size": BLOCK * PARTS, "num_local_experts": 3}
"""Experts that are unpacked in parts."""
REENTRANT = "sft.gradient_checkpointing_kwargs.use_reentrant=true"


def test_kernels_and_every_gradient_are_those_of_eager_float32(interpreted: Interpreted) -> None:
    """To 1e-5 of the norm of each; unpacked MXFP4 and embeddings bit for bit."""
    done = interpreted("checks")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("weights", "products", "overrides"),
    [
        ("mxfp4", "dtype", ["sft.verify_packing=false", "sft.gradient_checkpointing=false"]),
        ("mxfp4", "fp8", ["sft.verify_packing=false", "sft.gradient_checkpointing=false"]),
        ("dense", "dtype", [REENTRANT, "lora.target_modules=[layers.0.self_attn.q_proj]"]),
    ],
)
def test_a_fused_training_has_the_losses_and_gradients_of_eager_float32(
    interpreted: Interpreted, tmp_path: Path, weights: str, products: str, overrides: list[str]
) -> None:
    """In bfloat16 and packed; the second loss is that of adapters that have been trained."""
    model = save_mxfp4_copy(save_small_model(tmp_path / "dense", **WIDE), tmp_path / "mxfp4")
    lengths = [25, 17, 10, 12] if products == "fp8" else [39, 25]  # with others its second loss is 0.3 % off
    tokens = save_token_rows(tmp_path / "tokens.parquet", lengths, split=["train"] * len(lengths))
    shared = [*(f"model.architecture.{key}={value}" for key, value in WIDE.items()), "sft.packing=true",
              "sft.max_steps=2", "sft.warmup_steps=0", *overrides]  # fmt: skip
    ours = ["model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora", "model.dtype=bfloat16",
            "sft.bf16=true", f"model.weights={weights}", f"model.products={products}",
            "compute.gib_per_gpu=80"]  # fmt: skip
    eager, fused = (Run(small_run(model, *shared, *kind), tokens, tmp_path / str(len(kind))) for kind in ([], ours))
    eager.train()
    freeze(fused.config, tmp_path / "config.yaml")
    done = interpreted("train", tmp_path / "config.yaml", tokens, fused.out, fused.checkpoints)
    assert done.returncode == 0 and "; fused, " in done.stdout, f"{done.stdout}{done.stderr}"
    assert ("experts' products in FP8 (E4M3): the weights are exact in it" in done.stdout) == (products == "fp8")
    for key, off in (("loss", 2e-3), ("grad_norm", 5e-2), ("loss_tokens", 0)):
        found, exact = ([line[key] for line in run.metrics] for run in (fused, eager))
        assert len(exact) == 2 and found == pytest.approx(exact, rel=off), key
    found, exact = (Effect.read(run.out / "effect.json") for run in (fused, eager))
    assert exact.compare(found.base, found.parts["whole"]).startswith("as trained: "), (
        "the adapter's own effect as well"
    )
