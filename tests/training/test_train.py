"""A whole training run on the small model: what it leaves, and whether its loss is right."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from helpers.runs import Run, command
from helpers.small_model import save_token_rows, small_run
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM

from ftkit.errors import StageError
from ftkit.training.checkpoints import MARKER
from ftkit.training.methods.sft import SftTrainer
from ftkit.training.train import TrainResult, train


def test_a_run_says_what_it_does_and_what_came_out(
    whole: tuple[Run, TrainResult, list[str]], capfd: pytest.CaptureFixture
) -> None:
    _, result, said = whole
    assert said[0].startswith("eager attention, grouped_mm experts") and "float32" in said[0] and "CPU" in said[0]
    assert said[1] == "16 rows, 393 tokens, 267 with loss"
    assert said[2].startswith("training 13,824 parameters: attention 3,584 in 8 modules, experts 10,240 in 4 tensors")
    *steps, waited = said[3:]
    assert [line.split()[:2] for line in steps] == [["step", f"{i}/16"] for i in range(1, 17)]
    assert re.fullmatch(r"training waited \d+\.\d s for 6 checkpoints", waited)
    assert (result.global_step, result.max_steps, result.resumed_from) == (16, 16, None)
    assert result.last_loss < result.first_loss
    assert result.tokens == 2 * 393 and result.tokens_per_s == pytest.approx(result.tokens / result.seconds)
    assert 0 < result.peak_gib < 8


def test_a_run_leaves_adapter_metrics_events_and_a_picture(whole: tuple[Run, TrainResult, list[str]]) -> None:
    run, _, _ = whole
    assert {p.name for p in run.out.iterdir()} >= {"adapter", "metrics.jsonl", "tensorboard", "loss.png"}
    assert {p.name for p in (run.out / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
    }
    assert [line["step"] for line in run.metrics] == list(range(1, 17))
    assert all(value is not None for line in run.metrics for value in line.values())
    assert (run.out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((run.out / "tensorboard").iterdir())) == 1
    assert sorted(p.name for p in run.checkpoints.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-16"]


def test_what_libraries_say_goes_to_a_file(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compute_loss = SftTrainer.compute_loss

    def says_something(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("a function will go", FutureWarning, stacklevel=2)
        logging.getLogger("transformers.trainer").warning("an argument is ignored")
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(SftTrainer, "compute_loss", says_something)
    run = replace(run, config=small_run(model_folder, "sft.max_steps=1"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run.train()
    written, (out, err) = (run.out / "library.log").read_text(encoding="utf-8"), capfd.readouterr()
    for said in ("FutureWarning: a function will go", "transformers.trainer WARNING an argument is ignored"):
        assert said in written and said not in out + err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.max_length=30"], "16 rows, 220 tokens, 150 with loss; 5 rows left out: longer than sft.max_length=30"),
        (["sft.max_length=45", "sft.packing=true"], "packed into 10 rows, 87.3% full"),
    ],
)
def test_a_run_accounts_for_its_rows(
    model_folder: Path, token_file: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    _, lines = Run(small_run(model_folder, *overrides, "sft.max_steps=1"), token_file, tmp_path).train()
    assert said in lines[1]


def test_a_run_says_how_many_rows_it_has_cut(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    rows = pq.read_table(token_file)
    starts = rows["prompt_length"]
    rows = rows.append_column("thinking_start", starts).append_column("thinking_end", pc.add(starts, 15))
    pq.write_table(rows, tmp_path / "tokens.parquet")
    overrides = ["dataset.overlength=truncate-thinking", "sft.max_length=30", "sft.max_steps=1"]
    _, said = Run(small_run(model_folder, *overrides), tmp_path / "tokens.parquet", tmp_path / "run").train()
    assert said[1] == "16 rows, 370 tokens, 244 with loss; 5 rows cut at the end of their thinking"


def test_a_packed_run_without_two_documents_in_a_row_has_nothing_to_compare(model_folder: Path, tmp_path: Path) -> None:
    tokens = save_token_rows(tmp_path / "tokens.parquet", [40] * 4, split=["train"] * 4)
    config = small_run(model_folder, "sft.packing=true", "sft.max_length=64", "sft.max_steps=1")
    result, said = Run(config, tokens, tmp_path / "run").train()
    assert result.global_step == 1 and not any("packed documents" in line for line in said)


def test_libraries_keep_quiet(run: Run, capfd: pytest.CaptureFixture) -> None:
    train(
        run.config.model_copy(update={"sft": run.config.sft.model_copy(update={"max_steps": 1})}),
        tokens=run.tokens,
        out=run.out,
        checkpoints=run.checkpoints,
    )
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["eager", "16", "training", "step", "training"]


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_loss_is_the_mean_over_the_loss_tokens_of_each_document_alone(
    model_folder: Path, token_file: Path, tmp_path: Path, packing: str, accumulation: int
) -> None:
    """Guards: isolate_documents in setup._model for packing, TRL's count of loss tokens for accumulation."""
    batch = 16 // accumulation
    overrides = [
        f"sft.packing={packing}",
        f"sft.per_device_train_batch_size={batch}",
        f"sft.gradient_accumulation_steps={accumulation}",
    ]
    run = Run(small_run(model_folder, *overrides, "sft.max_steps=1"), token_file, tmp_path)
    result, _ = run.train()
    model = GptOssForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
    total = count = 0.0
    with torch.no_grad():
        for row in pq.read_table(token_file).to_pylist():
            if row["split"] == "train":
                labels = torch.tensor(row["labels"])[1:]
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
                total += cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
                count += (labels != -100).sum().item()
    assert result.first_loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("kind", [("eager", "grouped_mm"), ("ftkit_sinks", "ftkit_lora")], ids=" and ".join)
def test_the_router_is_not_trained_towards_balance(
    model_folder: Path, token_file: Path, tmp_path: Path, kind: tuple[str, str]
) -> None:
    """Unless asked for; the checkpoint carries 0.9, as the published ones do.

    Guards: sft.router_aux_loss_coef in sft_config, and ``aux_loss_enabled`` in Trainer.compute_loss.
    """
    assert '"router_aux_loss_coef": 0.9' in (model_folder / "config.json").read_text()
    ours = [f"model.attn_implementation={kind[0]}", f"model.experts_implementation={kind[1]}", "sft.max_steps=1"]
    losses = {}
    for coefficient in ("0.0", "0.9"):
        config = small_run(model_folder, *ours, f"sft.router_aux_loss_coef={coefficient}")
        losses[coefficient] = Run(config, token_file, tmp_path / coefficient).train()[0].first_loss
    assert losses["0.9"] > losses["0.0"] + 0.5


def test_accumulating_gives_the_same_losses_as_larger_batches(
    model_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    curves = []
    for batch, accumulation in ((4, 1), (1, 4)):
        overrides = [f"sft.per_device_train_batch_size={batch}", f"sft.gradient_accumulation_steps={accumulation}"]
        run = Run(small_run(model_folder, *overrides), token_file, tmp_path / str(batch))
        run.train()
        curves.append([line["loss"] for line in run.metrics])
    assert len(curves[0]) == 8 and curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_loss_that_is_no_number_names_its_rows_and_trains_nothing(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    """Guard: the check in Trainer.before_optimizer_step."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][287] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = save_token_rows(tmp_path / "t.parquet", [12] * 10)
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        row["input_ids"] = [min(token, 286) for token in row["input_ids"]]
        row["labels"] = [min(label, 286) for label in row["labels"]]
    rows[6]["input_ids"][3] = 287
    pq.write_table(table.from_pylist(rows, table.schema), path)
    config = small_run(folder, "sft.per_device_train_batch_size=1")
    with pytest.raises(StageError, match=r"the loss of step \d+ is not a number; its rows are 7\n"):
        replace(run, config=config, tokens=path).train()


@pytest.mark.parametrize("base", ["model_folder", "mxfp4_folder"])
def test_two_processes_train_as_one_with_twice_the_accumulation(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With packing and checkpointing, under DDP; only the first process prints and writes; resumed to the last bit.

    What a checkpoint holds is the same for both bases: one of them is resumed.
    """
    model_folder = request.getfixturevalue(base)
    token_file = save_token_rows(tmp_path / "tokens.parquet", [11, 29] * 8, split=["train"] * 16)
    common = [
        "sft.packing=true",
        "sft.max_length=40",
        "sft.per_device_train_batch_size=1",
        "sft.gradient_checkpointing=true",
        "sft.max_steps=4",
    ]
    if base == "mxfp4_folder":
        common += ["model.weights=mxfp4", "model.experts_implementation=ftkit_lora"]
    one = Run(small_run(model_folder, *common, "sft.gradient_accumulation_steps=4"), token_file, tmp_path / "one")
    two = Run(small_run(model_folder, *common, "sft.gradient_accumulation_steps=2"), token_file, tmp_path / "two")
    one.train()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command(two)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("step") for line in done.stdout.splitlines()) == 4 and "2 × CPU" in done.stdout
    for key in ("loss", "grad_norm", "learning_rate", "tokens", "loss_tokens"):
        assert [line[key] for line in two.metrics] == pytest.approx([line[key] for line in one.metrics], rel=1e-3), key
    assert {p.name for p in (two.checkpoints / "checkpoint-4").iterdir()} >= {
        "rng_state_0.pth",
        "rng_state_1.pth",
        MARKER,
    }
    for name, tensor in two.weights.items():
        torch.testing.assert_close(tensor, one.weights[name], rtol=1e-3, atol=1e-4)
    if base == "mxfp4_folder":
        return

    rest = replace(two, folder=tmp_path / "rest")
    shutil.copytree(two.checkpoints, rest.checkpoints)
    shutil.rmtree(rest.checkpoints / "checkpoint-4")
    again = subprocess.run([*torchrun, *command(rest)], capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0 and again.stdout.count("resuming from step 3 of 4") == 1, again.stderr
    assert all(torch.equal(tensor, two.weights[name]) for name, tensor in rest.weights.items())
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in two.metrics]


def test_no_stale_adapter_lies_beside_a_model_that_was_trained_whole(run: Run) -> None:
    one_step = ("sft.max_steps=1", "sft.save_steps=1")
    replace(run, config=small_run(Path(run.config.model.pretrained_model_name_or_path), *one_step)).train()
    whole = replace(
        run,
        config=small_run(Path(run.config.model.pretrained_model_name_or_path), *one_step, "lora=none"),
        folder=run.folder / "whole",
    )
    shutil.copytree(run.out, whole.out)
    whole.train()
    assert (whole.out / "model").is_dir() and not (whole.out / "adapter").exists()


def test_a_single_step_trains(run: Run) -> None:
    """Its warm-up would be all of it, at a rate of 0."""
    one = replace(run, config=small_run(Path(run.config.model.pretrained_model_name_or_path), "sft.max_steps=1"))
    one.train()
    assert one.metrics[0]["learning_rate"] > 0
    assert any(tensor.abs().max() > 0 for name, tensor in one.weights.items() if "lora_B" in name)
