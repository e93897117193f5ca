"""method=dpo on the small model: TRL's own losses, whatever attention computes them, and the guards of any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from helpers.runs import Run, kill_at, trainer_that_moved
from helpers.small_model import save_pairs, save_token_rows, small_run
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from ftkit.errors import StageError
from ftkit.models.lora import bare_model
from ftkit.training.pairs import PairCollator, pair_rows

DPO = ("method=dpo", "dataset=preference", "dataset.path=package:sample.jsonl")
JOINED = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora")
PADDED = ("model.attn_implementation=eager", "model.experts_implementation=grouped_mm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pairs, 16 of them to train on."""
    return save_pairs(tmp_path_factory.mktemp("pairs") / "tokens.parquet", [10 + (7 * i) % 31 for i in range(20)])


@pytest.fixture(scope="module")
def whole(model_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any, list[str]]:
    """16 steps on pairs end to end, evaluated after every 4, a checkpoint every 3."""
    config = small_run(model_folder, *DPO, *JOINED, "sft.eval_strategy=steps", "sft.eval_steps=4")
    run = Run(config, pairs, tmp_path_factory.mktemp("whole"))
    return run, *run.train()


def trainer_of(model_folder: Path, pairs: Path, folder: Path, *overrides: str) -> Any:
    config = small_run(model_folder, *DPO, *overrides)
    return trainer_that_moved(config, pairs, folder)


def loss_of(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """The loss of a batch, and TRL's figures of it."""
    trainer.model.eval()
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        loss = trainer._compute_loss(trainer.model, inputs, False)
    figures = {name: values[-1] for name, values in trainer._metrics["eval"].items() if "/" in name}
    trainer._metrics["eval"].clear()
    return loss.item(), figures


def trls_own(model_folder: Path, pairs: Path, ours: Any, folder: Path, **settings: Any) -> tuple[DPOTrainer, list[str]]:
    """TRL's trainer on the same pairs as text, eager attention, with the adapter of ours."""
    tokenizer = ours.processing_class
    rows = [row for row in pq.read_table(pairs).to_pylist() if row["split"] == "train"]
    texts = {
        "prompt": [tokenizer.decode(row["input_ids"][: row["prompt_length"]]) for row in rows],
        "chosen": [tokenizer.decode(row["input_ids"][row["prompt_length"] :]) for row in rows],
        "rejected": [tokenizer.decode(row["rejected_ids"]) for row in rows],
    }
    wanted = ours.model.peft_config["default"]
    lora = LoraConfig(
        r=wanted.r, lora_alpha=wanted.lora_alpha, target_modules=wanted.target_modules, task_type="CAUSAL_LM",
        target_parameters=wanted.target_parameters,
    )  # fmt: skip
    common = {"use_cpu": True, "bf16": False, "max_length": None, "report_to": "none", "router_aux_loss_coef": 0.0}
    args = DPOConfig(output_dir=str(folder), **common, **settings)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32", attn_implementation="eager")
    trainer = DPOTrainer(
        base, args=args, train_dataset=Dataset.from_dict(texts), processing_class=tokenizer, peft_config=lora
    )
    given = {name: value for name, value in ours.model.state_dict().items() if ".lora_" in name}
    there = {name for name in trainer.model.state_dict() if ".lora_" in name}
    assert given.keys() == there
    trainer.model.load_state_dict(given, strict=False)
    return trainer


@pytest.mark.parametrize("layout", [JOINED, PADDED], ids=["end to end", "padded"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((), {}),
        (("method.loss_type=ipo", "method.beta=0.3"), {"loss_type": "ipo", "beta": 0.3}),
        (
            ("method.loss_type=[sigmoid,sft]", "method.loss_weights=[1.0,0.2]", "method.ld_alpha=0.5"),
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "ld_alpha": 0.5},
        ),
        (
            ("method.loss_type=robust", "method.label_smoothing=0.1", "method.use_weighting=true"),
            {"loss_type": "robust", "label_smoothing": 0.1, "use_weighting": True},
        ),
    ],
    ids=["sigmoid", "ipo", "with sft", "robust"],
)
def test_the_loss_is_that_of_trls_own_trainer(
    layout: tuple[str, ...], ours: tuple[str, ...], theirs: dict[str, Any], model_folder: Path, ascii_pairs: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """On the same text, to 1e-5, and so are rewards and margins."""
    trainer = trainer_of(model_folder, ascii_pairs, tmp_path / "ours", *layout, *ours)
    other = trls_own(model_folder, ascii_pairs, trainer, tmp_path / "theirs", **theirs)
    for first in (0, 4):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(first, first + 4)])
        their_batch = other.data_collator([other.train_dataset[i] for i in range(first, first + 4)])
        assert torch.equal(batch["input_ids"], their_batch["input_ids"])
        loss, figures = loss_of(trainer, batch)
        their_loss, their_figures = loss_of(other, their_batch)
        assert loss == pytest.approx(their_loss, abs=1e-5)
        assert abs(figures["rewards/margins"]) > 1e-3, "the adapter has to change something"
        assert {n: figures[n] for n in their_figures} == pytest.approx(their_figures, abs=1e-4, rel=1e-5)


@pytest.fixture(scope="module")
def ascii_pairs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of letters, which have the same tokens when they are read as text, each answer ended."""
    path = tmp_path_factory.mktemp("ascii") / "tokens.parquet"
    save_pairs(path, [10 + (7 * i) % 31 for i in range(10)], split=["train"] * 10)
    from helpers.small_model import small_tokenizer

    tokenizer = small_tokenizer()
    table = pq.read_table(path).to_pylist()
    letter = [tokenizer.convert_tokens_to_ids(chr(ord("a") + i)) for i in range(26)]
    end = tokenizer.eos_token_id
    for row in table:
        row["input_ids"] = [letter[i % 26] for i in row["input_ids"]] + [end]
        row["rejected_ids"] = [letter[i % 26] for i in row["rejected_ids"]] + [end]
        prompt = row["prompt_length"]
        row["labels"] = [-100] * prompt + row["input_ids"][prompt:]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(path)), path)
    return path


def test_a_run_shows_rewards_and_widens_the_margin(whole: tuple[Run, Any, list[str]]) -> None:
    run, result, said = whole
    lines = [line for line in run.metrics if "loss" in line]
    held_out = [line for line in run.metrics if "eval_loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4), "at first the model is its own reference"
    assert lines[0]["rewards/margins"] == 0
    assert [line["step"] for line in held_out] == [4, 8, 12, 16]
    assert lines[-1]["rewards/margins"] > 0.5 and lines[-1]["loss"] < 0.6
    assert result.figures["rewards/margins"] == lines[-1]["rewards/margins"]
    assert result.figures["eval_rewards/accuracies"] == held_out[-1]["eval_rewards/accuracies"]
    assert any("held-out loss" in line and "margin" in line for line in said)
    assert (run.out / "loss.png").stat().st_size > 10_000
    assert {name.rpartition(".lora_")[2] for name in run.weights} == {"A.weight", "B.weight"}, "one adapter is saved"


def test_tokens_are_counted_of_both_answers(whole: tuple[Run, Any, list[str]], pairs: Path) -> None:
    run, result, said = whole
    rows = [row for row in pq.read_table(pairs).to_pylist() if row["split"] == "train"]
    tokens = sum(len(row["input_ids"]) + row["prompt_length"] + len(row["rejected_ids"]) for row in rows)
    answers = tokens - 2 * sum(row["prompt_length"] for row in rows)
    assert f"16 rows, {tokens} tokens, {answers} with loss" in said
    assert (result.tokens, run.metrics[-2]["loss_tokens"]) == (2 * tokens, 2 * answers)


def test_held_out_figures_are_means_over_all_pairs(model_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Three at a time, of four: the last batch is smaller, and counts for less."""
    overrides = ("sft.eval_strategy=steps", "sft.per_device_train_batch_size=3", "sft.gradient_accumulation_steps=1")
    trainer = trainer_of(model_folder, pairs, tmp_path, *JOINED, *overrides)
    alone = [loss_of(trainer, trainer.data_collator([row])) for row in trainer.eval_dataset]
    figures = trainer.held_out_figures()
    assert figures["eval_loss"] == pytest.approx(sum(loss for loss, _ in alone) / 4, rel=1e-5)
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert figures[f"eval_{name}"] == pytest.approx(sum(found[name] for _, found in alone) / 4, rel=1e-4)


def test_the_pairs_of_each_source_have_a_loss_of_their_own(model_folder: Path, pairs: Path, tmp_path: Path) -> None:
    rows = [row | {"source": "en" if row["row"] % 3 else "ja"} for row in pq.read_table(pairs).to_pylist()]
    mixed = tmp_path / "tokens.parquet"
    pq.write_table(pa.Table.from_pylist(rows), mixed)
    mix = "dataset.mix={ja: {path: package:sample.jsonl}, en: {path: package:sample.jsonl}}"
    overrides = (*JOINED, "sft.eval_strategy=steps", "dataset.path=null", mix)
    trainer = trainer_of(model_folder, mixed, tmp_path / "run", *overrides)
    figures, by_source = trainer.held_out_figures(), {"ja": [], "en": []}
    for row in trainer.eval_dataset:
        by_source[row["source"]].append(loss_of(trainer, trainer.data_collator([row]))[0])
    for source, losses in by_source.items():
        assert figures[f"eval_{source}_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5), source
    assert figures["eval_loss"] == pytest.approx(sum(sum(found) for found in by_source.values()) / 4, rel=1e-5)


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(whole: tuple[Run, Any, list[str]], tmp_path: Path) -> None:
    """Guards: those of test_train, below TRL's DPOTrainer."""
    killed = Run(whole[0].config, whole[0].tokens, tmp_path / "killed")
    kill_at(killed, "step 11/")
    result, said = killed.train()
    assert result.resumed_from == 9 and any(line.startswith("resuming from step 9 of 16") for line in said)
    for key in ("step", "loss", "rewards/margins", "grad_norm", "tokens", "loss_tokens", "eval_loss"):
        assert [line.get(key) for line in killed.metrics] == [line.get(key) for line in whole[0].metrics], key
    assert all(torch.equal(tensor, whole[0].weights[name]) for name, tensor in killed.weights.items())


def test_the_reference_is_the_model_without_its_adapter(model_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Guard: delete_adapter in DpoTrainer; TRL's copy would be a second one, of twice the memory."""
    trainer = trainer_of(model_folder, pairs, tmp_path, *JOINED)
    assert list(trainer.model.peft_config) == ["default"]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    _, figures = loss_of(trainer, batch)
    with trainer.model.disable_adapter():
        _, reference = loss_of(trainer, batch)
    beta = trainer.beta
    assert figures["rewards/chosen"] == pytest.approx(
        beta * (figures["logps/chosen"] - reference["logps/chosen"]), abs=1e-4
    )


def test_pairs_with_an_answer_that_is_too_long_are_left_out_and_counted(model_folder: Path, tmp_path: Path) -> None:
    path = save_pairs(tmp_path / "tokens.parquet", [20, 40, 20, 20], split=["train"] * 4)
    config = small_run(model_folder, *DPO, "sft.max_length=38")
    rows, counts = pair_rows(path, config, vocab_size=288)
    assert (len(rows), counts.rows, counts.overlength, counts.trained) == (3, 4, 1, 3)
    strict = small_run(model_folder, *DPO, "sft.max_length=38", "dataset.overlength=error")
    with pytest.raises(StageError, match=r"1 rows are longer than sft.max_length=38: row 2 \(40 tokens\)"):
        pair_rows(path, strict, vocab_size=288)


def test_rows_that_are_no_pairs_are_refused_before_the_model_is_loaded(model_folder: Path, tmp_path: Path) -> None:
    path = save_token_rows(tmp_path / "tokens.parquet", [20, 20])
    with pytest.raises(StageError, match="rejected_ids") as error:
        pair_rows(path, small_run(model_folder, *DPO), vocab_size=288)
    assert "stage=prepare" in error.value.cure


def test_a_loss_that_is_no_number_names_its_pairs(model_folder: Path, pairs: Path, tmp_path: Path) -> None:
    trainer = trainer_of(model_folder, pairs, tmp_path, *JOINED)
    head = bare_model(trainer.model).get_output_embeddings()
    assert head is not None
    with torch.no_grad():
        head.weight.fill_(float("nan"))
    with pytest.raises(StageError, match=r"the loss of step 1 is not a number; its rows are \d+"):
        trainer.train()


def test_batches_hold_the_better_answers_above_the_worse() -> None:
    import numpy as np

    row = {"input_ids": np.array([5, 6, 7, 8]), "prompt_length": 2, "rejected_ids": np.array([9]), "row": 3}
    batch = PairCollator(0)([row])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert (batch["tokens"], batch["loss_tokens"], batch["rows"]) == (7, 3, [3])
