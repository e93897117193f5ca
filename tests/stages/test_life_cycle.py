"""The whole life cycle at toy size, as a user runs it; then a second command, a lost file, a change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.command import FinishedRun
from PIL import Image

from ftkit.assets import asset_path
from ftkit.config.stages import LIFE_CYCLE
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.requests import parse_request
from ftkit.serving.endpoint.service import Served

EIGHT = [stage for stage in LIFE_CYCLE if stage not in ("environment", "invoke")]


def record(run: FinishedRun, stage: str) -> dict:
    return json.loads((run.outputs / stage / "record.json").read_text(encoding="utf-8"))


def test_every_stage_reports_and_leaves_a_record(finished_run: FinishedRun):
    lines = finished_run.all.out.splitlines()
    assert [stage for stage in LIFE_CYCLE if any(line.startswith(stage) for line in lines)] == list(LIFE_CYCLE)
    for stage in EIGHT:
        made = record(finished_run, stage)
        assert made["seconds"] >= 0 and made["versions"]["ftkit"]
        assert all((finished_run.outputs / name).stat().st_size == size for name, size in made["files"].items())


def test_prepare_accounts_for_every_row(finished_run: FinishedRun):
    folder, result = finished_run.outputs / "prepare", record(finished_run, "prepare")["result"]
    assert result["rows"] == result["train"] + result["heldout"] + result["rejected"] == 256
    table = pq.read_table(folder / "apto_reasoning_harmony.parquet").to_pylist()
    lines = (folder / "apto_reasoning_harmony.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(table) == len(lines) == 256
    first = json.loads(lines[0])["messages"]
    assert [message["role"] for message in first] == ["system", "user", "assistant"]
    assert first[0]["content"].startswith("reasoning language: Japanese")
    assert first[2]["thinking"] and "<think>" not in first[2]["content"]


def test_training_leaves_curve_metrics_and_tensorboard(finished_run: FinishedRun):
    folder = finished_run.outputs / "train"
    assert Image.open(folder / "loss.png").size[0] > 400
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    assert len(held_out) == 10 and held_out[-1]["step"] == metrics[-1]["step"]
    assert held_out[-1]["eval_thinking_loss"] < held_out[0]["eval_thinking_loss"] / 2
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2
    assert all(line["tokens_per_s"] > 0 and line["peak_gib"] > 0 for line in metrics)
    assert list((folder / "tensorboard").rglob("events.*"))


def test_the_model_learns_to_think_in_japanese(finished_run: FinishedRun):
    result = record(finished_run, "evaluate")["result"]
    assert result["base"]["thinks_in_japanese"] <= 0.1
    assert result["merged"]["thinks_in_japanese"] >= 0.9
    for model in ("base", "merged"):
        assert result[model]["parses"] == result[model]["finished"] == 1.0
    assert "before" in finished_run.all.out and "after" in finished_run.all.out


def test_the_second_command_skips_what_is_up_to_date(finished_run: FinishedRun):
    done = finished_run.ftkit("stage=all")
    assert done.status == 0, done.err
    assert done.out.count("up to date") == len(EIGHT)


def test_invoke_answers_with_thinking_and_counts_whole_and_streamed(finished_run: FinishedRun):
    question = "invoke.prompt=3メートルは何センチメートルですか？"
    whole, streamed = (finished_run.ftkit("stage=invoke", question, f"invoke.stream={s}") for s in ("false", "true"))
    assert whole.status == 0, whole.err
    labels = [line.split()[0] for line in whole.out.splitlines()[1:]]
    assert labels == ["question", "thinking", "answer", "invoke"]
    assert "300" in whole.out and "ended by itself" in whole.out
    assert streamed.out.splitlines()[:-1] == whole.out.splitlines()[:-1]  # the last line has the seconds


def test_a_whole_request_from_a_file_works(finished_run: FinishedRun):
    (finished_run.folder / "request.json").write_text(
        '{"messages": [{"role": "system", "content": "reasoning language: Japanese"},'
        ' {"role": "user", "content": "5と8ではどちらが大きいですか？"}], "max_new_tokens": 500}',
        encoding="utf-8",
    )
    done = finished_run.ftkit("stage=invoke", "invoke.prompt=null", "invoke.file=request.json")
    assert done.status == 0, done.err


def test_plan_knows_what_is_up_to_date_and_what_a_change_touches(finished_run: FinishedRun):
    assert finished_run.ftkit("stage=plan").out.count("up to date") == len(EIGHT)
    changed = finished_run.ftkit("stage=plan", "lora.r=4").out.splitlines()
    status = {line.split()[0]: line for line in changed if line.strip()}
    assert "up to date" in status["publish"]
    assert "changed: would run again" in status["train"]
    assert "would run again" in status["merge"]


def test_a_predecessor_made_with_other_settings_is_refused(finished_run: FinishedRun):
    done = finished_run.ftkit("stage=train", "dataset.persona=quiet")
    assert done.status == 1 and "dataset.persona" in done.err
    assert "stage=prepare,publish,train" in done.err


def test_a_record_whose_files_are_gone_is_refused_and_made_again(copied_run: FinishedRun):
    (copied_run.outputs / "train" / "adapter" / "adapter_model.safetensors").unlink()
    done = copied_run.ftkit("stage=merge")
    assert done.status == 1 and "adapter_model.safetensors, which is gone" in done.err
    assert "stage=train,merge" in done.err


def test_a_missing_predecessor_names_all_that_is_missing(ftkit):
    done = ftkit("experiment=tiny", "stage=merge")
    assert done.status == 1 and "stage=prepare,publish,train,merge" in done.err


def test_a_registered_version_is_immutable(copied_run: FinishedRun):
    store = copied_run.folder / "outputs" / "_workspace" / "models" / "tiny-01-pre"
    assert [path.name for path in sorted(store.glob("[!.]*"))] == ["1"]
    done = copied_run.ftkit("stage=register", "force=true")
    assert "same content as before" in done.out
    weights = next((store / "1").rglob("config.json"))
    weights.chmod(0o644)
    weights.write_text("{}")
    changed = copied_run.ftkit("stage=deploy", "force=true")
    assert changed.status == 1 and "was changed after it was kept" in changed.err
    mended = copied_run.ftkit("stage=register")
    assert "tiny-01-pre:2" in mended.out and "new version" in mended.out


def test_outputs_that_cannot_be_written_are_an_error(ftkit, tmp_path: Path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    done = ftkit("experiment=tiny", "stage=prepare")
    assert done.status == 1 and "run.outputs=" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("stage", ["train", "merge"])
def test_a_stage_whose_packages_are_missing_names_the_command_that_installs_them(
    finished_run: FinishedRun, tmp_path: Path, stage: str
):
    """Guard: require_train_extra in the stage, before anything that needs torch is imported."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs")
    hide = "import sys; sys.modules['trl'] = None; from ftkit.__main__ import main; main()"
    command = [sys.executable, "-c", hide, "experiment=tiny", f"stage={stage}", "force=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "needs trl, which is not installed" in done.stderr and "[train]'" in done.stderr


def test_the_prompt_is_the_trainings_token_for_token(finished_run: FinishedRun):
    """Guard: ServingDefaults.of in the stage merge; what the command line merged is what is loaded here."""
    served = Served(finished_run.outputs / "merged", Limits())
    lines = Path(asset_path("package:sample.jsonl")).read_text(encoding="utf-8").splitlines()
    for row in pq.read_table(finished_run.outputs / "prepare" / "tokens.parquet").slice(0, 5).to_pylist():
        question = json.loads(lines[row["row"] - 1])["question"]
        asked = parse_request(json.dumps({"prompt": question}), served.rules)
        assert served.prompt_ids(asked) == row["input_ids"][: row["prompt_length"]]


def test_a_server_that_starts_and_answers_logs_no_traceback(finished_run: FinishedRun):
    """Guard: LocalPlatform._served; the inference server fails to read a version in a folder of another name."""
    log = Path(record(finished_run, "deploy")["result"]["log"]).read_text(encoding="utf-8")
    assert "loaded in" in log and "Traceback" not in log
