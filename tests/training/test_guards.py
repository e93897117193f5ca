"""What is checked when a run begins, and what is said when the GPU's memory is full."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.lora import lora
from helpers.packed_rows import documents, packed
from helpers.runs import Run
from helpers.small_model import small_run
from transformers import GptOssForCausalLM

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.families import Family
from ftkit.models.gpt_oss import document_masks
from ftkit.models.gpt_oss.document_masks import isolate_documents
from ftkit.models.lora import Trained, add_lora, train_all
from ftkit.models.training_memory import GIB, footprint, model_parameters
from ftkit.training import build as setup
from ftkit.training import guards
from ftkit.training.collator import Collator
from ftkit.training.guards import check_packing
from ftkit.training.memory_advice import out_of_memory, savings
from ftkit.training.methods.sft import SftTrainer

PACKED = ["sft.packing=true", "sft.max_length=64", "sft.max_steps=2"]


def rows_of(batch: dict[str, torch.Tensor], sizes: list[int]) -> list[dict]:
    row = {name: batch[name][0, : sum(sizes)].numpy() for name in ("input_ids", "labels")}
    return [row | {"seq_lengths": sizes, "rows": list(range(1, len(sizes) + 1))}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_packed_documents_do_not_notice_when_others_change(
    model: GptOssForCausalLM, experts: str, dtype: torch.dtype
) -> None:
    """Both ways: with the masks they are equal within rounding; without them no rounding explains the difference."""
    model.set_experts_implementation(experts)
    wrapped, _ = add_lora(model.to(dtype), lora())
    sizes = [19, 5, 12]
    rows = rows_of(packed(documents((tuple(sizes),))), sizes)
    collate = Collator(pad_token_id=0, packed=True)
    with pytest.raises(StageError, match=r"packed documents see each other: .* row 1 and those packed") as caught:
        check_packing(wrapped, rows, collate)
    assert "sft.packing=false" in caught.value.cure
    isolate_documents(wrapped)
    compared = check_packing(wrapped, rows, collate)
    assert compared is not None and compared[0] == 3 and compared[1] < (1e-5 if dtype == torch.float32 else 0.05)
    assert check_packing(wrapped, rows_of(packed(documents(((9,),))), [9]), collate) is None


def test_the_comparison_is_made_without_dropout_and_leaves_the_model_in_training(model: GptOssForCausalLM) -> None:
    """Guards: ``eval`` and ``train`` in check_packing."""
    wrapped, _ = add_lora(model, lora(target_parameters=None, lora_dropout=0.5, init_lora_weights=False))
    isolate_documents(wrapped)
    wrapped.train()
    sizes = [19, 5]
    compared = check_packing(wrapped, rows_of(packed(documents((tuple(sizes),))), sizes), Collator(0, packed=True))
    assert compared is not None and compared[1] < 1e-5 and wrapped.training


def test_logits_that_are_no_numbers_are_refused(model: GptOssForCausalLM) -> None:
    """Guard: ``not share <= explained`` in check_packing."""
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    isolate_documents(model)
    rows = rows_of(packed(documents(((19, 5),))), [19, 5])
    with pytest.raises(StageError, match="changes by nan% of its spread"):
        check_packing(model, rows, Collator(0, packed=True))


def test_a_run_in_mixed_precision_is_held_to_bfloat16_s_rounding(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: autocast in DocumentsApart, and in ``_in_bfloat16``; float32's tolerance is out of reach."""
    monkeypatch.setitem(guards.TOLERANCE, "float32", -1.0)
    assert Run(small_run(model_folder, *PACKED, "sft.bf16=true"), token_file, tmp_path).train()[0].global_step == 2


def test_a_run_whose_documents_see_each_other_stops_before_its_first_step(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: check_packing in DocumentsApart. The masks' own line is taken out."""
    monkeypatch.setattr(document_masks, "isolate_documents", lambda model: None)
    run = Run(small_run(model_folder, *PACKED), token_file, tmp_path / "run")
    with pytest.raises(StageError, match="packed documents see each other"):
        run.train()
    assert not (run.out / "metrics.jsonl").exists()
    unchecked = Run(small_run(model_folder, *PACKED, "sft.verify_packing=false"), token_file, tmp_path / "unchecked")
    assert unchecked.train()[0].global_step == 2


def test_a_packed_run_says_that_it_was_checked(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    _, said = Run(small_run(model_folder, *PACKED), token_file, tmp_path).train()
    assert any(line.startswith("2 packed documents do not notice when others") for line in said)


@pytest.mark.parametrize("left_out", ["1.self_attn.q_proj", "0.mlp.experts"])
def test_an_adapter_that_does_not_move_stops_the_run_and_is_named(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """Guard: WeightsMove, added in set_up. A hook does what a kernel without a backward pass would."""

    def without_gradient(*args):
        model, trained = add_lora(*args)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name and f"layers.{left_out}.lora_B" in name:
                parameter.register_hook(torch.zeros_like)
        return model, trained

    monkeypatch.setattr(setup, "add_lora", without_gradient)
    run = Run(small_run(model_folder), token_file, tmp_path)
    with pytest.raises(StageError, match=r"1 of 12 adapters have not moved in two steps") as caught:
        run.train()
    assert f"model.layers.{left_out}" in caught.value.what and "lora.target_modules" in caught.value.cure
    assert [line["step"] for line in run.metrics] == [1]


def test_a_weight_that_does_not_move_stops_full_fine_tuning_and_is_named(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: WeightsMove, added in set_up; a sink whose attention gives it no gradient, for instance."""

    def without_gradient(model: GptOssForCausalLM, family: Family) -> Trained:
        trained = train_all(model, family)
        model.model.layers[1].self_attn.sinks.register_hook(torch.zeros_like)
        return trained

    monkeypatch.setattr(setup, "train_all", without_gradient)
    run = Run(small_run(model_folder, "lora=none"), token_file, tmp_path)
    with pytest.raises(StageError, match=r"1 of 33 weights have not moved .*: model.layers.1.self_attn.sinks"):
        run.train()


def test_out_of_memory_is_answered_with_what_saves_most_cheaply(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the OutOfMemoryError in train._to_the_end."""

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(SftTrainer, "training_step", full)
    run = Run(small_run(model_folder), token_file, tmp_path)
    with pytest.raises(StageError, match="out of GPU memory at step 1\n"):
        run.train()


LARGE = "sft.per_device_train_batch_size=4 sft.gradient_accumulation_steps=2 sft.gradient_checkpointing=false"


def test_each_saving_is_what_the_prediction_says_of_its_override() -> None:
    """The overrides are typed as they are printed, and saved GiB are compared with the footprint of both runs."""
    config = resolve([*LARGE.split(), "model.attn_implementation=eager"])
    found = savings(config, longest=1800)
    assert [saving.override.partition(" ")[0] for saving in found] == [
        "model.attn_implementation=ftkit_sinks",
        "sft.per_device_train_batch_size=1",
        "model.weights=mxfp4",
        "sft.gradient_checkpointing=true",
        "sft.packing=false",
        "sft.max_length=2048",
        "lora.r=4",
        "lora=attention",
    ]
    before = footprint(config).total / GIB
    for saving in found:
        after = resolve([*LARGE.split(), "model.attn_implementation=eager", *saving.override.split()])
        if saving.override != "sft.packing=false":
            assert saving.saves == pytest.approx(before - footprint(after).total / GIB), saving.override
        assert saving.saves > 0 and saving.needs == pytest.approx(before - saving.saves)
    assert resolve([*LARGE.split(), *found[1].override.split()]).rows_per_step == config.rows_per_step


@pytest.mark.parametrize("model", ["qwen3-8b", "qwen3-30b-a3b", "olmo-2-1b"])
def test_every_saving_can_be_typed_for_other_families(model: str) -> None:
    large = [f"model={model}", *LARGE.split(), "model.attn_implementation=eager"]
    found = savings(resolve(large), longest=1800)
    assert found and all(resolve([*large, *saving.override.split()]) for saving in found)


def test_full_fine_tuning_saves_by_sharding_and_needs_sixteen_bytes_a_parameter() -> None:
    config = resolve(["lora=none", "compute=h100x8", "stage=plan"])
    assert savings(config)[0].override == "sft.fsdp=true"
    alone, shared = footprint(config), footprint(resolve(["lora=none", "compute=h100x8", "sft=fsdp", "stage=plan"]))
    parameters = model_parameters(config.model.architecture)
    assert alone.weights + alone.optimiser == (16 + 4) * parameters
    assert shared.weights + shared.optimiser == 16 * parameters / 8


def test_the_message_lists_them_in_order_with_gib_and_cost() -> None:
    error = out_of_memory(resolve(LARGE.split()), step=7, longest=1800)
    assert error.what == "out of GPU memory at step 7"
    lines = [line.strip() for line in error.cure.splitlines()]
    assert lines[0].startswith("sft.per_device_train_batch_size=1 sft.gradient_accumulation_steps=8 (saves ")
    assert all("GiB; " in line for line in lines) and len(lines) == 7
    whole = resolve(LARGE.split())
    bare = whole.model_copy(update={"compute": whole.compute.model_copy(update={"environment_variables": {}})})
    assert "expandable_segments" in out_of_memory(bare, 7, 1800).cure.splitlines()[0]


def test_a_model_that_does_not_fit_is_named(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory …")

    monkeypatch.setattr(setup, "load_base", full)
    with pytest.raises(StageError, match="tiny does not fit into the GPU's memory") as caught:
        Run(small_run(model_folder), token_file, tmp_path).train()
    assert "stage=plan" in caught.value.cure


def test_a_gradient_that_is_no_number_stops_the_run(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the check of grad_norm in TrustworthyTrainer._write_line."""

    def with_infinite_gradient(*args):
        model, trained = add_lora(*args)
        next(p for name, p in model.named_parameters() if ".lora_B." in name).register_hook(lambda g: g + float("inf"))
        return model, trained

    monkeypatch.setattr(setup, "add_lora", with_infinite_gradient)
    with pytest.raises(StageError, match="the gradient of step 1 is not finite"):
        Run(small_run(model_folder), token_file, tmp_path).train()


def test_flex_attention_without_a_gpu_is_refused_where_it_would_run(
    model_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    overrides = ["model.attn_implementation=flex_attention", "compute.gib_per_gpu=80"]
    with pytest.raises(StageError, match="flex_attention needs a CUDA GPU") as caught:
        Run(small_run(model_folder, *overrides), token_file, tmp_path).train()
    assert caught.value.cure == "model.attn_implementation=eager"


def test_a_run_in_a_thread_leaves_signals_alone(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """Python hands signals to the main thread alone."""
    run = Run(small_run(model_folder, "sft.max_steps=1"), token_file, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        result, _ = pool.submit(run.train).result()
    assert result.global_step == 1
