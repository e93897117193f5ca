"""The loss on held-out rows: the right number, of the right tokens, and no trace of it in the training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.runs import Run, command, kill_at
from helpers.small_model import SPECIAL, save_token_rows, small_run
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM

from ftkit.errors import Interrupted, StageError
from ftkit.training.artifact import check_trained
from ftkit.training.train import train

_, RETURN, CHANNEL, START, END, MESSAGE, _ = range(len(SPECIAL))
EVALUATED = ["sft.eval_strategy=steps", "sft.eval_steps=4"]
"""After steps 4, 8, 12 and 16 of 16."""


def evaluations(run: Run) -> list[dict[str, float]]:
    return [line for line in run.metrics if "eval_loss" in line]


def weights_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def harmony_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as the chat template makes them; every fourth is held out, and one of these has no thinking."""
    rng = np.random.default_rng(3)

    def text(size: int) -> list[int]:
        return rng.integers(len(SPECIAL), 288, size).tolist()

    rows = []
    for i in range(24):
        prompt = [START, *text(2), MESSAGE, *text(4 + i % 5), END, START, *text(1)]
        thinking = [CHANNEL, *text(1), MESSAGE, *text(3 + i % 7), END, START, *text(1)]
        answer = [CHANNEL, *text(1), MESSAGE, *text(2 + i % 3), RETURN]
        completion = answer if i == 7 else [*thinking, *answer]
        ids, labels = [*prompt, *completion], [*([-100] * len(prompt)), *completion]
        split = "heldout" if i % 4 == 3 else "train"
        rows.append({"row": i + 1, "split": split, "input_ids": ids, "labels": labels, "prompt_length": len(prompt)})
    path = tmp_path_factory.mktemp("harmony") / "tokens.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_losses_are_means_over_the_tokens_of_each_part(
    model_folder: Path, harmony_rows: Path, tmp_path: Path, packing: str
) -> None:
    """Of the base model with an untrained adapter, calculated by hand from each row alone."""
    config = small_run(model_folder, *EVALUATED, f"sft.packing={packing}", "sft.max_steps=1", "sft.learning_rate=1e-12")
    run = Run(config, harmony_rows, tmp_path)
    result, _ = run.train()
    model = GptOssForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
    parts: dict[str, list[float]] = {"all": [], "thinking": [], "answer": []}
    for row in pq.read_table(harmony_rows).to_pylist():
        if row["split"] == "train":
            continue
        ids = torch.tensor(row["input_ids"])
        with torch.no_grad():
            losses = cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none").tolist()
        texts = [i for i in range(row["prompt_length"], len(ids)) if ids[i] == MESSAGE]
        for i in range(row["prompt_length"], len(ids)):
            parts["all"].append(losses[i - 1])
        for kind, begins in zip(("thinking", "answer") if len(texts) == 2 else ("answer",), texts, strict=True):
            ends = next(i for i in range(begins, len(ids)) if ids[i] in (END, RETURN))
            parts[kind] += losses[begins:ends]
    expected = [np.mean(parts[name]) for name in ("all", "thinking", "answer")]
    assert len(set(expected)) == 3
    found = [result.eval_loss, result.eval_thinking_loss, result.eval_answer_loss]
    assert found == pytest.approx(expected, rel=1e-5)
    assert evaluations(run) == [{"step": 1, "eval_loss": found[0], "eval_thinking_loss": found[1],
                                 "eval_answer_loss": found[2]}]  # fmt: skip


def test_a_run_that_is_evaluated_trains_as_one_that_is_not(
    model_folder: Path, harmony_rows: Path, tmp_path: Path
) -> None:
    """Also with dropout, which draws random numbers. Guard: HeldOut loops by itself; a DataLoader would draw one."""
    runs = []
    for name, strategy in (
        ("without", ["sft.eval_strategy=no"]),
        ("with", EVALUATED),
        ("epoch", ["sft.eval_strategy=epoch"]),
    ):
        options = ["lora.target_parameters=null", "lora.lora_dropout=0.3", "sft.max_steps=10", *strategy]
        runs.append(Run(small_run(model_folder, *options), harmony_rows, tmp_path / name))
        runs[-1].train()
    without, evaluated, epoch = runs
    assert weights_equal(without.weights, evaluated.weights) and weights_equal(without.weights, epoch.weights)
    losses = [[line["loss"] for line in run.metrics if "loss" in line] for run in runs]
    assert losses[0] == losses[1] == losses[2]
    assert [line["step"] for line in evaluations(evaluated)] == [4, 8, 10]
    assert [line["step"] for line in evaluations(epoch)] == [9, 10]


def test_an_evaluation_at_the_end_of_an_epoch_comes_after_a_line_of_training(
    model_folder: Path, harmony_rows: Path, tmp_path: Path
) -> None:
    """Its checkpoint carries the metrics up to its step. Guard: _Guard.on_epoch_end."""
    options = ["sft.eval_strategy=epoch", "sft.logging_steps=4", "sft.max_steps=10", "sft.save_steps=100"]
    run = Run(small_run(model_folder, *options), harmony_rows, tmp_path)
    run.train()
    kinds = [(line["step"], "eval_loss" in line) for line in run.metrics]
    assert kinds == [(4, False), (8, False), (9, False), (9, True), (10, False), (10, True)]


def test_a_stop_amid_an_epoch_is_not_evaluated(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """Guard: should_evaluate in _Guard.on_epoch_end; the trainer ends an epoch that it leaves like any other."""
    options = ["sft.eval_strategy=epoch", "sft.num_train_epochs=1", "sft.save_steps=100"]
    run = Run(small_run(model_folder, *options), token_file, tmp_path / "run")

    def say(line: str) -> None:
        if line.startswith("step 4/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after step 5 of 8"):
        train(run.config, tokens=run.tokens, out=run.out, checkpoints=run.checkpoints, say=say)
    assert not evaluations(run)
    run.train()
    assert [line["step"] for line in evaluations(run)] == [8]


def test_a_killed_run_goes_on_with_the_same_evaluations(model_folder: Path, harmony_rows: Path, tmp_path: Path) -> None:
    config = small_run(model_folder, *EVALUATED, "sft.max_steps=10")
    whole, cut = Run(config, harmony_rows, tmp_path / "whole"), Run(config, harmony_rows, tmp_path / "cut")
    whole.train()
    kill_at(cut, "step  7/")
    result, said = cut.train()
    assert result.resumed_from == 6 and any(line.startswith("step 8  held-out loss") for line in said)
    assert evaluations(cut) == evaluations(whole)
    assert weights_equal(cut.weights, whole.weights)


@pytest.fixture
def rising(model_folder: Path, token_file: Path, tmp_path: Path) -> Run:
    """Random tokens, learned by heart: the loss on others rises from the first steps on."""
    options = [
        "sft.eval_strategy=steps",
        "sft.eval_steps=2",
        "sft.save_total_limit=1",
        "sft.warmup_steps=0",
        "sft.num_train_epochs=4",
    ]
    return Run(small_run(model_folder, *options, "sft.learning_rate=5e-2"), token_file, tmp_path / "rising")


def with_sft(run: Run, **changes: object) -> Run:
    return replace(run, config=run.config.model_copy(update={"sft": run.config.sft.model_copy(update=changes)}))


def test_training_ends_when_patience_does_and_the_best_checkpoint_stays(rising: Run) -> None:
    """Guards: stops_early in _Guard.on_evaluate, and ``best`` in keep_newest."""
    run = with_sft(rising, early_stopping_patience=2)
    result, said = run.train()
    losses = {line["step"]: line["eval_loss"] for line in evaluations(run)}
    best = min(losses, key=lambda step: losses[step])
    assert result.best_step == best and result.global_step == result.max_steps == best + 4 < 32
    assert f"no lower held-out loss in 2 evaluations: ended at step {best + 4} of 32" in said
    assert {p.name for p in run.checkpoints.glob("checkpoint-*")} == {f"checkpoint-{best}", f"checkpoint-{best + 4}"}
    assert check_trained(run.out / "adapter", run.config).global_step == best + 4
    assert result.eval_loss == losses[best + 4] > losses[best]

    weights = run.weights
    shutil.rmtree(run.out)
    again, _ = run.train()
    assert (again.global_step, again.resumed_from) == (best + 4, best + 4), "cut off before it saved: only saves"
    assert weights_equal(run.weights, weights)


def test_the_adapter_of_the_best_evaluation_is_kept_if_asked_for(rising: Run) -> None:
    """Guard: load_best_model_at_end in train._save."""
    run = with_sft(rising, load_best_model_at_end=True)
    result, said = run.train()
    assert result.global_step == 32 and result.best_step is not None and result.best_step < 32
    assert f"the adapter is that of step {result.best_step}, which had the lowest held-out loss" in said
    best = load_file(run.checkpoints / f"checkpoint-{result.best_step}" / "adapter_model.safetensors")
    assert weights_equal(run.weights, best)
    assert result.eval_loss == min(line["eval_loss"] for line in evaluations(run))


def test_two_processes_find_the_same_losses_as_one(model_folder: Path, harmony_rows: Path, tmp_path: Path) -> None:
    """Three batches, so that one process has more of them. The rate moves no weight to speak of."""
    options = [*EVALUATED, "sft.max_steps=1", "sft.learning_rate=1e-12"]
    one = Run(small_run(model_folder, *options), harmony_rows, tmp_path / "one")
    two = Run(small_run(model_folder, *options), harmony_rows, tmp_path / "two")
    one.train()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command(two)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sum("held-out loss" in line for line in done.stdout.splitlines()) == 1
    for key, value in evaluations(one)[0].items():
        assert evaluations(two)[0][key] == pytest.approx(value, rel=1e-6), key


def test_without_held_out_rows_the_run_goes_on_and_says_so(model_folder: Path, tmp_path: Path) -> None:
    tokens = save_token_rows(tmp_path / "tokens.parquet", [12] * 6, split=["train"] * 6)
    run = Run(small_run(model_folder, *EVALUATED, "sft.max_steps=2"), tokens, tmp_path / "run")
    result, said = run.train()
    assert "no evaluation: no row was held out to evaluate on" in said and result.eval_loss is None
    patient = with_sft(Run(run.config, tokens, tmp_path / "patient"), early_stopping_patience=1)
    with pytest.raises(StageError, match="no row was held out") as caught:
        patient.train()
    assert "dataset.heldout" in caught.value.cure


def test_the_curve_of_evaluations_goes_to_tensorboard(model_folder: Path, harmony_rows: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(small_run(model_folder, *EVALUATED, "sft.max_steps=4"), harmony_rows, tmp_path / "run")
    run.train()
    events = EventAccumulator(str(run.out / "tensorboard"))
    events.Reload()
    (found,) = events.Scalars("heldout/answer_loss")
    assert found.step == 4 and found.value == pytest.approx(evaluations(run)[0]["eval_answer_loss"])
    assert json.loads((run.checkpoints / "checkpoint-4" / "trainer_state.json").read_text())["log_history"][-1][
        "eval_loss"
    ]


MIX = ["dataset=mix", "dataset.mix={ja: {path: package:sample.jsonl}, en: {path: package:sample.jsonl}}"]


@pytest.fixture(scope="module")
def mixed_rows(harmony_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, as if two of three were of another source."""
    rows = pq.read_table(harmony_rows).to_pylist()
    path = tmp_path_factory.mktemp("mixed") / "tokens.parquet"
    pq.write_table(
        pa.Table.from_pylist([row | {"source": "en" if i % 3 == 0 else "ja"} for i, row in enumerate(rows)]), path
    )
    return path


@pytest.mark.parametrize("packing", ["true", "false"])
def test_each_source_has_the_losses_of_its_own_rows(
    model_folder: Path, mixed_rows: Path, tmp_path: Path, packing: str
) -> None:
    """Against runs in which its rows alone are held out. Guard: HeldOut measures by source."""
    options = [*EVALUATED, f"sft.packing={packing}", "sft.max_steps=1", "sft.learning_rate=1e-12"]
    run = Run(small_run(model_folder, *options, *MIX), mixed_rows, tmp_path / "mixed")
    result, said = run.train()
    rows = pq.read_table(mixed_rows).to_pylist()
    for source in ("ja", "en"):
        own = tmp_path / f"{source}.parquet"
        pq.write_table(pa.Table.from_pylist([r for r in rows if r["split"] == "train" or r["source"] == source]), own)
        alone, _ = Run(small_run(model_folder, *options), own, tmp_path / source).train()
        for part, name in (("", "loss"), ("thinking_", "thinking_loss"), ("answer_", "answer_loss")):
            expected = getattr(alone, f"eval_{part}loss")
            assert result.source_losses[f"eval_{source}_{name}"] == pytest.approx(expected, rel=1e-5)
    (line,) = evaluations(run)
    assert {name: line[name] for name in result.source_losses} == result.source_losses
    assert any(f"ja {line['eval_ja_loss']:.4f}, en {line['eval_en_loss']:.4f}" in text for text in said)
    with Image.open(run.out / "loss.png") as picture:
        assert picture.info["Title"] == "tiny: loss"


def test_a_killed_run_on_a_mixture_goes_on_to_the_bit(model_folder: Path, mixed_rows: Path, tmp_path: Path) -> None:
    config = small_run(model_folder, *EVALUATED, "sft.max_steps=10", *MIX)
    whole, cut = Run(config, mixed_rows, tmp_path / "whole"), Run(config, mixed_rows, tmp_path / "cut")
    whole.train()
    kill_at(cut, "step  7/")
    result, _ = cut.train()
    assert result.resumed_from == 6 and weights_equal(whole.weights, cut.weights)
    assert evaluations(cut) == evaluations(whole) and "eval_en_thinking_loss" in evaluations(cut)[0]
