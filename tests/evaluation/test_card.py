"""The merged model's card: the hub can read it, it tells what was measured, and it makes no new version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.command import FinishedRun
from huggingface_hub import ModelCard

from ftkit.config.resolve import resolve
from ftkit.evaluation.card import write_card
from ftkit.records import Record, read


def record(run: FinishedRun, stage: str) -> Record:
    found = read(run.outputs, stage)
    assert found
    return found


def test_after_the_evaluation_the_card_has_its_figures_and_the_lineage(finished_run: FinishedRun) -> None:
    card = ModelCard.load(finished_run.outputs / "merged" / "README.md")
    data = record(finished_run, "publish").result
    measured = record(finished_run, "evaluate").result
    assert (card.data.license, card.data.library_name, card.data.language) == ("mit", "transformers", ["ja"])
    found = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert found["thinks_in_japanese"] == measured["merged"]["thinks_in_japanese"]
    assert card.data.base_model is None, "what ships with ftkit is not on the hub"
    digest = record(finished_run, "merge").result["digest"]
    for told in (f"digest `{data['digest']}`", "`package:tiny-gpt-oss`", "| hardware | CPU, ", "r 8, alpha 16",
                 "213 to train on, 43 held out", "| thinks in Japanese | 0.00 (0.00 to 0.08) |", "## Limits",
                 f"digest | `{digest}`", "43 held-out questions, greedy"):  # fmt: skip
        assert told in card.text, told


def test_the_registered_version_has_the_card_with_the_figures(finished_run: FinishedRun) -> None:
    """evaluate comes before register, whose versions cannot change."""
    registered = Path(finished_run.folder, record(finished_run, "register").result["path"], "README.md")
    assert ModelCard.load(registered).data.eval_results
    assert registered.read_text("utf-8") == (finished_run.outputs / "merged" / "README.md").read_text("utf-8")


def test_a_card_written_anew_is_no_new_version_and_no_reason_to_merge_again(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    """Guard: ``besides`` in local_store.register."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    run = FinishedRun(tmp_path, finished_run.all)
    first = run.ftkit("stage=register", "force=true")
    with (run.outputs / "merged" / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nMore about it.\n")
    again = run.ftkit("stage=register", "force=true")
    assert first.status == again.status == 0, again.err
    assert "same content as before" in again.out
    assert "up to date" in run.ftkit("stage=merge").out


@pytest.mark.usefixtures("workspace_named")
def test_the_real_model_s_card_names_base_data_and_rounding(finished_run: FinishedRun, tmp_path: Path) -> None:
    config = resolve(["stage=plan", "merge.format=mxfp4", "model.revision=abc"])
    rounding = {"weights": 0.061, "logits": 0.27, "kept": 0.91, "by_rounding": 0.45, "steps": 300}
    merged = record(finished_run, "merge").result | {"format": "mxfp4", "rounding": rounding}
    trained, data = record(finished_run, "train"), record(finished_run, "publish")
    write_card(tmp_path, config, trained=trained, data=data, merged=json.loads(json.dumps(merged)))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("openai/gpt-oss-20b", "apache-2.0")
    assert card.data.datasets == ["APTOinc/japanese-reasoning-dataset-sample"] and card.data.eval_results is None
    assert "`openai/gpt-oss-20b` at `abc`, fine-tuned by LoRA on attention and experts" in card.text
    assert "changed their weights by 6 %, logits by 0.27" in card.text
    assert "91 % of the training is kept, 45 % before 300 steps of calibration" in card.text
    assert "It has not been evaluated" in card.text


def test_a_model_that_was_trained_whole_is_not_said_to_have_adapters(finished_run: FinishedRun, tmp_path: Path) -> None:
    stages = {name: record(finished_run, name) for name in ("train", "publish", "merge")}
    whole = resolve(["experiment=tiny", "lora=none"])
    write_card(tmp_path, whole, trained=stages["train"], data=stages["publish"], merged=stages["merge"].result)
    card = ModelCard.load(tmp_path / "README.md")
    assert "lora" not in (card.data.tags or []) and "LoRA" not in card.text
    assert "fine-tuned in all weights but the router's to reason in Japanese" in card.text
