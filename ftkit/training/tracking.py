"""Who gets the metrics: TensorBoard, trackio's folder here, an MLflow server (the workspace's own in a job)."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.extras import require
from ftkit.training.watch import line_of

URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "ftkit"
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""For mlflow where the user has not set them: a server that is down delays little, and nobody else hears of the run."""


def trackers(config: Config) -> set[str]:
    """Who gets the metrics, as ``tracking`` and the environment say.

    Raises:
        StageError: MLflow or trackio is asked for by name and its package is missing, or no MLflow server is named.
    """
    asked = config.trackers
    if "auto" in asked:
        return {"tensorboard", "mlflow"} if URI in os.environ else {"tensorboard"}
    if "trackio" in asked:
        require("trackio", ["trackio"], "tracking=trackio")
    if "mlflow" in asked:
        require("job", ["mlflow"], "tracking=mlflow")
        if URI not in os.environ:
            raise StageError(
                f"tracking=mlflow, but {URI} names no server", cure=f"export {URI}=…, or tracking=tensorboard"
            )
    return asked - {"none"}


def tracking_callbacks(config: Config, names: set[str], say: Callable[[str], None]) -> Iterator[TrainerCallback]:
    """The callbacks that log to MLflow's server and to trackio's folder; a missing package of MLflow's is said."""
    if "trackio" in names:
        yield TrackioTracking(config, say)
    if "mlflow" in names:
        try:
            yield MlflowTracking(os.environ[URI], config.run.name, say)
        except ImportError:
            say("metrics do not go to MLflow: pip install 'ftkit[job]'")


class TrackioTracking(TrainerCallback):
    """Logs each line of metrics to the folder ``TRACKIO_DIR``, which holds all runs below the same ``run.outputs``.

    transformers' own callback takes up any earlier run of the same name, so that two trainings would make one curve.

    Args:
        config: the whole configuration; its groups that a training depends on go with the run.
        say: prints a line.
    """

    def __init__(self, config: Config, say: Callable[[str], None]):
        os.environ.setdefault("TRACKIO_DIR", str(Path(config.run.outputs, "_trackio").resolve()))
        import trackio  # reads TRACKIO_DIR once and for all

        self._trackio, self._config = trackio, config
        say(f"metrics go to trackio: TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show --project {EXPERIMENT}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.init(
                project=EXPERIMENT,
                name=self._config.run.name,
                config=self._config.model_dump(include={"model", "dataset", "lora", "sft"}),
                resume="allow" if state.global_step else "never",
                embed=False,
            )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if line := line_of({"step": state.global_step, **kwargs["logs"]}):
            step = line.pop("step")
            self._trackio.log({name: value for name, value in line.items() if value is not None}, step=step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()


class MlflowTracking(TrainerCallback):
    """Logs each line of metrics in the background; a server that does not answer never stops the training.

    Args:
        uri: of the tracking server. Azure ML's ``azureml://`` is HTTPS with the token that the job has been given.
        run_name: name of the run, where it is not Azure ML that has begun it.
        say: prints a line.
    """

    def __init__(self, uri: str, run_name: str, say: Callable[[str], None]):
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri.replace("azureml://", "https://", 1))
        self._run_name, self._say = run_name, say
        self._run_id = os.environ.get("MLFLOW_RUN_ID")
        self._pending: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run_id is None:
            try:
                self._run_id = self._begin_run()
            except Exception as error:  # whatever the server is or does
                self._say(f"metrics do not go to MLflow: {str(error).splitlines()[0]}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        from mlflow.entities import Metric

        logs: dict[str, Any] = kwargs["logs"]
        line = line_of({"step": state.global_step, **logs})
        if self._run_id is None or line is None:
            return
        now = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now, state.global_step) for name, value in line.items() if value is not None
        ]
        self._pending.append(self._client.log_batch(self._run_id, metrics=batch, synchronous=False))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        try:
            for operation in self._pending:
                operation.wait()
        except Exception as error:  # the training is done and must not be lost over its tracking
            self._say(f"some metrics did not reach MLflow: {str(error).splitlines()[0]}")

    def _begin_run(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        return self._client.create_run(experiment, run_name=self._run_name).info.run_id
