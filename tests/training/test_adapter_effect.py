"""What training leaves of its adapter's effect, against the saved adapter in a model of PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Run
from helpers.small_model import small_run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ftkit.serving.endpoint.adapter_effect import Effect


def by_peft(model_folder: Path, adapter: Path, rows: Any, left_out: str) -> list[list[float]]:
    """Log-probabilities by the saved adapter, without the part of it whose names hold a word."""
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        for name, matrix in model.named_parameters():
            if ".lora_B." in name and left_out and left_out in name:
                matrix.zero_()
        found = []
        for row in rows:
            ids = torch.tensor([row])
            logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            found.append(logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist())
        return found


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sft.packing=true", "model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora"],
    ],
)
def test_it_is_that_of_the_saved_adapter_and_of_its_parts(
    model_folder: Path, token_file: Path, tmp_path: Path, overrides: list[str]
):
    run = Run(small_run(model_folder, "sft.max_steps=3", *overrides), token_file, tmp_path)
    run.train()
    effect = Effect.read(run.out / "effect.json")
    assert len(effect.rows) == 4 and effect.parts.keys() == {"whole", "attention", "experts"}
    for part, left_out in {"whole": "", "attention": ".experts.", "experts": "self_attn"}.items():
        expected = by_peft(model_folder, run.out / "adapter", effect.rows, left_out)
        for row, exact in zip(effect.parts[part], expected, strict=True):
            assert row == pytest.approx(exact, abs=2e-4)
    assert effect.compare(effect.base, effect.parts["whole"]).startswith("as trained: ")


def test_an_adapter_of_attention_alone_has_no_parts(model_folder: Path, token_file: Path, tmp_path: Path):
    run = Run(small_run(model_folder, "sft.max_steps=1", "lora=attention"), token_file, tmp_path)
    run.train()
    assert Effect.read(run.out / "effect.json").parts.keys() == {"whole"}


def test_a_model_that_is_trained_whole_leaves_none_and_removes_an_earlier_one(
    model_folder: Path, token_file: Path, tmp_path: Path
):
    run = Run(small_run(model_folder, "sft.max_steps=1", "lora=none"), token_file, tmp_path)
    run.out.mkdir()
    (run.out / "effect.json").touch()
    run.train()
    assert not (run.out / "effect.json").exists()
