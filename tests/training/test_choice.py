"""What auto stands for: the fastest that fits, the rows of a step unchanged, and less when memory has run out."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.small_model import small_run
from safetensors.torch import load_file

from ftkit.config.resolve import resolve
from ftkit.data.row_lengths import RowLengths
from ftkit.errors import ConfigError, StageError
from ftkit.models.training_memory import GIB, footprint
from ftkit.training.choice import AS_FAST, FILE, USABLE, choices, is_open, predicted_gib, runner_up, settle
from ftkit.training.fitting import lengths_for
from ftkit.training.memory_advice import OutOfMemory
from ftkit.training.methods.sft import SftTrainer
from ftkit.training.recompute import spread
from ftkit.training.train import train


def plan(*overrides: str):
    return resolve(["stage=plan", *overrides])


@pytest.mark.parametrize("gib", [24, 40, 48, 80, 94, 141])
def test_the_choice_is_the_fastest_that_fits_and_keeps_the_rows_of_a_step(gib: int) -> None:
    config = plan(f"compute.gib_per_gpu={gib}")
    found = choices(config)
    best, speed = found[0], max(choice.tokens_per_s for choice in found)
    assert best.gib <= USABLE * gib and best.tokens_per_s >= AS_FAST * speed
    assert best.config.rows_per_step == config.rows_per_step == 16
    assert not is_open(best.config) and all(choice.gib <= USABLE * gib for choice in found)
    other = runner_up(found)
    assert other and other.tokens_per_s <= speed


@pytest.mark.parametrize(
    ("gib", "weights", "recomputed"), [(24, "mxfp4", 4), (40, "mxfp4", 0), (80, "dense", 0), (141, "dense", 0)]
)
def test_a_card_gets_its_own(gib: int, weights: str, recomputed: int) -> None:
    settled = settle(plan(f"compute.gib_per_gpu={gib}"))
    assert (settled.model.weights, settled.sft.recomputed_layers(24)) == (weights, recomputed)


@pytest.mark.parametrize(
    ("model", "gib", "recomputed"), [("qwen3-8b", 24, 30), ("qwen3-8b", 80, 0), ("qwen3-30b-a3b", 94, 0)]
)
def test_other_families_with_fused_layers_choose_among_dense_weights(model: str, gib: int, recomputed: int) -> None:
    found = choices(plan(f"model={model}", f"compute.gib_per_gpu={gib}"))
    assert {choice.config.model.weights for choice in found} == {"dense"}
    assert found[0].gib <= USABLE * gib and found[0].config.sft.recomputed_layers(36) == recomputed


@pytest.mark.parametrize("gib", [24, 80, 141])
def test_rows_that_are_not_packed_are_planned_by_their_own_lengths(gib: int) -> None:
    """Short rows go many at a time; what has to fit is the batch of the longest. Packed rows are full."""
    config = plan(f"compute.gib_per_gpu={gib}", "sft.packing=false")
    short = RowLengths(300, [900, *[400] * 63])
    unknown, known = choices(config), choices(config, short)
    assert known[0].config.sft.rows_at_a_time > unknown[0].config.sft.rows_at_a_time
    assert known[0].config.rows_per_step == config.rows_per_step and known[0].config.sft.max_length == 4096
    typed = ("sft.per_device_train_batch_size=4", "sft.gradient_accumulation_steps=4", "model.weights=mxfp4",
             "sft.keep_attention=false")  # fmt: skip
    four = plan(f"compute.gib_per_gpu={gib}", "sft.packing=false", *typed)
    (by_rows,) = {choice.gib for choice in choices(four, short) if choice.config.sft.gradient_checkpointing is True}
    longest = plan(f"compute.gib_per_gpu={gib}", "sft.max_length=525", "sft.gradient_checkpointing=true", *typed)
    assert by_rows == pytest.approx(footprint(longest).total / GIB), "(900 + 3 × 400) / 4 tokens a row"
    full = RowLengths(300, [4096] * 64)
    assert predicted_gib(four, full) == predicted_gib(four, None) == footprint(four).total / GIB
    packed = plan(f"compute.gib_per_gpu={gib}")
    assert choices(packed, short)[0] == choices(packed)[0]


def test_lengths_are_those_of_the_training_rows(token_file: Path, tmp_path: Path) -> None:
    rows = pq.read_table(token_file).to_pylist()
    lengths = sorted((len(row["input_ids"]) for row in rows if row["split"] == "train"), reverse=True)
    unpacked = partial(plan, "sft.packing=false")
    whole = lengths_for(unpacked(), token_file)
    assert whole and whole.longest == lengths[:64] and whole.mean == pytest.approx(sum(lengths) / len(lengths))
    assert whole.of_longest(2) == math.ceil(sum(lengths[:2]) / 2)
    limit = lengths[3]
    kept = [length for length in lengths if length <= limit]
    assert len(kept) < len(lengths), "else nothing is left out"
    left_out = lengths_for(unpacked(f"sft.max_length={limit}"), token_file)
    assert left_out and left_out.longest[0] == limit and left_out.of_longest(1) == limit
    assert left_out.mean == pytest.approx(sum(kept) / len(kept)), "rows that are left out do not count"
    cut = lengths_for(unpacked(f"sft.max_length={limit}", "dataset.overlength=truncate-thinking"), token_file)
    assert cut and [*cut.longest[:4]] == [limit] * 4
    assert cut.mean == pytest.approx(sum(min(length, limit) for length in lengths) / len(lengths))
    assert lengths_for(unpacked("sft.max_length=8"), token_file) is None
    assert lengths_for(plan(), tmp_path / "none.parquet") is None, "packed rows are full"
    with pytest.raises(StageError, match="there are no token rows"):
        lengths_for(unpacked(), tmp_path / "none.parquet")


def test_what_is_typed_stands() -> None:
    typed = ("sft.per_device_train_batch_size=4", "sft.gradient_checkpointing=12", "model.weights=mxfp4",
             "sft.keep_attention=false")  # fmt: skip
    assert not is_open(plan(*typed)) and settle(plan(*typed)) == plan(*typed)
    some = settle(plan("sft.gradient_checkpointing=true", "sft.gradient_accumulation_steps=6"))
    assert some.sft.gradient_checkpointing is True and some.rows_per_step == 6
    rows = settle(plan("sft.per_device_train_batch_size=2"))
    assert (rows.sft.rows_at_a_time, rows.sft.gradient_accumulation_steps) == (2, 16)


@pytest.mark.parametrize(("family", "layers"), [("gpt-oss-20b", 12), ("qwen3-8b", 36)])
def test_long_rows_keep_attention_s_output_where_layers_recompute(family: str, layers: int) -> None:
    """Of gpt-oss's 24 layers 12 have no window. What is kept takes memory, and rows of 65,536 gain speed by it."""
    rows = "sft.max_length=32768", "sft.per_device_train_batch_size=1", "model.weights=dense"
    long = partial(plan, f"model={family}", "compute.gib_per_gpu=141", "sft.gradient_checkpointing=true", *rows)
    kept, not_kept = (choices(long(f"sft.keep_attention={keep}"))[0] for keep in ("true", "false"))
    assert kept.tokens_per_s > 1.08 * not_kept.tokens_per_s
    a = kept.config.model.architecture
    values = 32768 * a.num_attention_heads * (a.head_dim * 2 + 4)
    assert (kept.gib - not_kept.gib) * GIB == pytest.approx((layers - 1) * values), "one is in its turn"
    assert settle(long()).sft.keep_attention is True and "all layers recomputed but for attention" in str(kept)
    assert settle(long("sft.keep_attention=false")).sft.keep_attention is False
    reentrant = settle(long("sft.gradient_checkpointing_kwargs={use_reentrant:true}"))
    assert not reentrant.sft.keeps_attention, "reentrant checkpointing keeps nothing"
    free = choices(plan("compute.gib_per_gpu=141"))
    assert not any(c.config.sft.keep_attention for c in free if c.config.sft.gradient_checkpointing is False)


@pytest.mark.parametrize("overrides", ["lora=none", "sft=fsdp compute=h100x8", "model.attn_implementation=eager"])
def test_where_our_kernels_do_not_run_it_is_the_least_memory(overrides: str) -> None:
    settled = settle(plan(*overrides.split()))
    assert settled.sft.rows_at_a_time == 1 and settled.sft.gradient_checkpointing is True
    assert settled.model.weights == "dense"


def test_a_model_that_no_choice_fits_gets_the_smallest_and_plan_warns() -> None:
    (only,) = choices(plan("compute.gib_per_gpu=10"))
    assert only.gib > 10 and only.config.model.weights == "mxfp4" and only.config.sft.gradient_checkpointing is True


def test_more_layers_than_there_are_cannot_be_recomputed() -> None:
    with pytest.raises(ConfigError, match=r"sft.gradient_checkpointing: 30 layers, and gpt-oss-20b has 24"):
        plan("sft.gradient_checkpointing=30")


def test_layers_are_spread_evenly() -> None:
    assert spread(0, 4) == [False] * 4 and spread(4, 4) == [True] * 4
    assert spread(2, 4) == [False, True] * 2 and sum(spread(7, 24)) == 7


@pytest.mark.slow
@pytest.mark.parametrize("ours", [False, True])
def test_recomputing_some_layers_trains_as_all_and_none_to_the_last_bit(
    model_folder: Path, token_file: Path, tmp_path: Path, ours: bool
) -> None:
    kernels = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora") if ours else ()
    found = []
    for layers in ("false", "1", "true"):
        config = small_run(model_folder, *kernels, "sft.max_steps=3", f"sft.gradient_checkpointing={layers}")
        out = tmp_path / layers
        train(config, tokens=token_file, out=out, checkpoints=out / "c", say=lambda _: None)
        found.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])


OPEN = ("sft.per_device_train_batch_size=auto", "sft.gradient_accumulation_steps=2", "sft.gradient_checkpointing=auto",
        "sft.max_steps=6", "sft.save_steps=2", "compute.gib_per_gpu=80", "sft.bf16=true", "model.dtype=bfloat16",
        "model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora")  # fmt: skip


def test_training_chooses_by_the_rows_that_it_has(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """On a card where one row of ``sft.max_length`` fits, and several of those that there are."""
    settings = *OPEN, "sft.packing=false", "sft.max_length=256", "sft.max_steps=1", "sft.gradient_accumulation_steps=4"
    config = small_run(model_folder, *settings)
    one = small_run(model_folder, *settings, "sft.per_device_train_batch_size=1", "sft.gradient_checkpointing=true")
    card = config.compute.model_copy(update={"gib_per_gpu": 1.0001 * predicted_gib(one, None) / USABLE})
    config = config.model_copy(update={"compute": card})
    assert settle(config).sft.rows_at_a_time == 1
    said: list[str] = []
    result = train(config, tokens=token_file, out=tmp_path, checkpoints=tmp_path / "c", say=said.append)
    (chosen,) = [line for line in said if line.startswith("chosen: ")]
    assert chosen.startswith(("chosen: 2 rows", "chosen: 4 rows")) and result.global_step == 1


@pytest.mark.slow
def test_a_choice_that_runs_out_of_memory_goes_on_with_less(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, from the last checkpoint, with the rows of a step as they were. Guard: next_smaller in train."""
    step, full = SftTrainer.training_step, []

    def filled(self: SftTrainer, *args, **kwargs):
        if self.state.global_step == 3 and self.args.per_device_train_batch_size == 2:
            full.append(self.args.gradient_accumulation_steps)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SftTrainer, "training_step", filled)
    said: list[str] = []
    config, checkpoints = small_run(model_folder, *OPEN), tmp_path / "c"
    monkeypatch.setattr("ftkit.training.choice.AS_FAST", 1.0)
    result = train(config, tokens=token_file, out=tmp_path, checkpoints=checkpoints, say=said.append)
    assert said[0].startswith("chosen: 2 rows at a time, no layer recomputed") and full == [1]
    (word,) = [line for line in said if "out of GPU memory" in line]
    assert word.startswith("out of GPU memory at step 4; going on from the last checkpoint with 1 row at a time")
    assert (result.global_step, result.resumed_from) == (6, 2)
    assert json.loads((checkpoints / FILE).read_text())["below_gib"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_what_is_typed_is_not_stepped_down(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(SftTrainer, "training_step", full)
    config = small_run(model_folder)
    with pytest.raises(OutOfMemory, match="at step 1"):
        train(config, tokens=token_file, out=tmp_path, checkpoints=tmp_path / "c", say=lambda _: None)
    assert not (tmp_path / "c" / FILE).exists()
