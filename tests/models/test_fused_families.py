"""Fused layers of Llama's form on the CPU, by Triton's interpreter: a whole training against eager float32."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.interpreter import Interpreted
from helpers.runs import Run
from helpers.small_families import save_small
from helpers.small_model import save_token_rows

from ftkit.config.resolve import freeze, resolve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("products", "loss"), [("dtype", 2e-3), ("fp8_all", 5e-3)])
def test_a_fused_training_has_the_losses_and_gradients_of_eager_float32(
    interpreted: Interpreted, tmp_path: Path, products: str, loss: float
) -> None:
    """Qwen3, in bfloat16, packed and recomputed; the second loss is that of adapters that have been trained."""
    model = save_small("qwen3", tmp_path / "qwen3")
    tokens = save_token_rows(tmp_path / "tokens.parquet", [9, 5, 10, 4], split=["train"] * 4)
    shared = ["experiment=tiny", f"model.pretrained_model_name_or_path={model}", "sft.max_length=16",
              "sft.learning_rate=1e-2", "sft.eval_strategy=no", "sft.packing=true", "sft.max_steps=2",
              "sft.warmup_steps=0", "sft.per_device_train_batch_size=1", "sft.gradient_accumulation_steps=1",
              "sft.verify_packing=false",
              "sft.gradient_checkpointing_kwargs.use_reentrant=true"]  # fmt: skip
    eager = ["model.attn_implementation=eager", "model.experts_implementation=eager"]
    fused = ["model.dtype=bfloat16", "sft.bf16=true", "model.attn_implementation=ftkit_varlen",
             "model.experts_implementation=eager", "compute.gib_per_gpu=80",
             f"model.products={products}"]  # fmt: skip
    exact, ours = (Run(resolve([*shared, *kind]), tokens, tmp_path / kind[0]) for kind in (eager, fused))
    exact.train()
    freeze(ours.config, tmp_path / "config.yaml")
    done = interpreted("train", tmp_path / "config.yaml", tokens, ours.out, ours.checkpoints)
    assert done.returncode == 0 and "; fused, " in done.stdout, f"{done.stdout}{done.stderr}"
    said = "linear layers' products in FP8 (E4M3): 100.0% of the weights' rows are rounded to it, by 2."
    assert (said in done.stdout) == (products == "fp8_all"), done.stdout
    for key, off in (("loss", loss), ("grad_norm", 5e-2), ("loss_tokens", 0)):
        found, wanted = ([line[key] for line in run.metrics] for run in (ours, exact))
        assert len(wanted) == 2 and found == pytest.approx(wanted, rel=off), key
