"""What a run shows on a terminal, and what arrives at an MLflow server and in trackio's folder."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import Run
from helpers.small_model import small_run
from rich.console import Console

from ftkit.errors import Interrupted, StageError
from ftkit.packages import install_command
from ftkit.training import progress as watch
from ftkit.training.tracking import trackers
from ftkit.training.train import train

SHORT = ["sft.max_steps=4", "sft.eval_strategy=steps", "sft.eval_steps=2", "sft.save_steps=2"]


@pytest.fixture
def run(model_folder: Path, token_file: Path, tmp_path: Path) -> Run:
    return Run(small_run(model_folder, *SHORT), token_file, tmp_path / "run")


def test_a_terminal_shows_a_bar_with_figures_and_evaluations_above_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(watch, "console", lambda: Console(file=screen, force_terminal=True, width=140, highlight=False))
    _, said = run.train()
    shown = screen.getvalue()
    assert "4/4" in shown and "tokens/s" in shown and "GiB" in shown and "loss" in shown
    assert "step 2  held-out loss" in shown and "step 4  held-out loss" in shown
    assert not any(line.startswith("step") for line in said), "the bar says it"


def test_time_left_is_shown_as_a_clock() -> None:
    assert [watch._clock(seconds) for seconds in (0, 59.6, 3600, 7384)] == ["0:00", "1:00", "1:00:00", "2:03:04"]


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


def test_metrics_and_evaluations_arrive_at_mlflow(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    from mlflow import MlflowClient

    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run.train()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ftkit")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "tiny"
    losses = {metric.step: metric.value for metric in client.get_metric_history(logged.info.run_id, "loss")}
    assert losses == {line["step"]: line["loss"] for line in run.metrics if "loss" in line}
    held_out = {metric.step: metric.value for metric in client.get_metric_history(logged.info.run_id, "eval_loss")}
    assert held_out == {line["step"]: line["eval_loss"] for line in run.metrics if "eval_loss" in line}


def test_trainings_of_all_runs_arrive_in_trackios_folder(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """One that was stopped and resumed is one run; the same training again, under the same name, is another."""
    monkeypatch.setenv("TRACKIO_DIR", "")
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # of an earlier test, with that one's folder
    config = small_run(model_folder, *SHORT, "tracking=trackio", f"run.outputs={tmp_path / 'outputs'}")
    stopped, again = (Run(config, token_file, tmp_path / name) for name in ("stopped", "again"))

    def stop(line: str) -> None:
        if line.startswith("step 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, tokens=token_file, out=stopped.out, checkpoints=stopped.checkpoints, say=stop)
    _, said = stopped.train()
    again.train()
    assert capfd.readouterr().out == "", "trackio's own lines are not ftkit's"
    folder = tmp_path / "outputs" / "_trackio"
    assert f"metrics go to trackio: TRACKIO_DIR={folder} trackio show --project ftkit" in said

    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(Api().runs("ftkit"))
    assert [run.name for run in runs] == ["tiny", "tiny"] and folder.is_dir()
    assert all(run.config and run.config["sft"]["learning_rate"] == config.sft.learning_rate for run in runs)
    for run, logged in zip((stopped, again), sorted(runs, key=lambda run: run.config["_Created"]), strict=True):
        logs = SQLiteStorage.get_logs("ftkit", run=logged.name, run_id=logged.id)
        for name in ("loss", "eval_loss"):
            assert {line["step"]: line[name] for line in logs if name in line} == {
                line["step"]: line[name] for line in run.metrics if name in line
            }
    command = [sys.executable, "-m", "trackio.cli", "get", "metric", "--project", "ftkit", "--run", "tiny"]
    shown = subprocess.run(
        [*command, "--metric", "loss", "--json"],
        env=os.environ | {"TRACKIO_DIR": str(folder)},
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)


def test_trainings_arrive_at_wandb(
    model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Offline, for want of its server; one that was stopped and resumed has one id."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small_run(model_folder, *SHORT, "tracking=wandb", f"run.outputs={tmp_path / 'outputs'}")
    run = Run(config, token_file, tmp_path / "stopped")

    def stop(line: str) -> None:
        if line.startswith("step 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, tokens=token_file, out=run.out, checkpoints=run.checkpoints, say=stop)
    _, said = run.train()
    assert capfd.readouterr().out == "", "wandb's own lines are not ftkit's"
    assert any(line.startswith(f"metrics go to wandb: wandb sync {tmp_path / 'outputs' / '_wandb'}") for line in said)

    ids, names, losses = set(), set(), {}
    for file in sorted((tmp_path / "outputs" / "_wandb").glob("wandb/*/*.wandb")):
        store, record = DataStore(), wandb_internal_pb2.Record()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record.ParseFromString(bytes(data))
            if record.HasField("run"):
                ids.add(record.run.run_id)
                names.add((record.run.project, record.run.display_name))
                sent = {item.key: item.value_json for item in record.run.config.update}
                assert json.loads(sent["sft.learning_rate"]) == config.sft.learning_rate
            if record.HasField("history"):
                line = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                losses |= {line["_step"]: line["loss"]} if "loss" in line else {}
    assert len(ids) == 1 and names == {("ftkit", "tiny")}
    assert losses == {line["step"]: line["loss"] for line in run.metrics if "loss" in line}


def test_nobody_who_is_not_signed_in_waits_for_wandb(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "api", type("NotSignedIn", (), {"api_key": None}))
    with pytest.raises(StageError, match="nobody is signed in") as caught:
        trackers(small_run(model_folder, "tracking=wandb"))
    assert "WANDB_MODE=offline" in caught.value.cure


def test_trackers_are_those_asked_for(model_folder: Path, token_file: Path, tmp_path: Path, monkeypatch) -> None:
    """Asked for by name, MLflow is no option; by default it is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def asked(tracking: str) -> set[str]:
        return trackers(small_run(model_folder, f"tracking={tracking}"))

    assert [asked(words) for words in ("auto", "none", "tensorboard")] == [{"tensorboard"}, set(), {"tensorboard"}]
    with pytest.raises(StageError, match="tracking=mlflow, but MLFLOW_TRACKING_URI names no server") as caught:
        asked("mlflow")
    assert "tracking=tensorboard" in caught.value.cure
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert asked("auto") == asked("tensorboard,mlflow") == {"tensorboard", "mlflow"} and asked("mlflow") == {"mlflow"}
    for name, extra in (("mlflow", "job"), ("trackio", "trackio")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(StageError, match=f"tracking={name} needs {name}") as caught:
            asked(name)
        assert caught.value.cure == install_command(extra)
    quiet = Run(small_run(model_folder, *SHORT, "tracking=none"), token_file, tmp_path / "run")
    _, said = quiet.train()
    assert not (quiet.out / "tensorboard").exists() and not any("MLflow" in line for line in said)


def test_a_server_that_does_not_answer_stops_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result, said = run.train()
    assert result.global_step == 4 and any(line.startswith("metrics do not go to MLflow: ") for line in said)


def test_metrics_that_do_not_arrive_are_said_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    """The run was begun by somebody else, an Azure ML job for instance, and the server is gone since."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    result, said = run.train()
    assert result.global_step == 4 and any(line.startswith("some metrics did not reach MLflow: ") for line in said)


def test_without_the_package_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    _, said = run.train()
    assert f"metrics do not go to MLflow: {install_command('job')}" in said
