"""Who gets the metrics; among them an MLflow server: the workspace's own inside an Azure ML job, or another one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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
        StageError: MLflow is asked for by name, and no server is named or its package is missing.
    """
    asked = [config.tracking] if isinstance(config.tracking, str) else config.tracking
    if "auto" in asked:
        return {"tensorboard", "mlflow"} if URI in os.environ else {"tensorboard"}
    if "mlflow" in asked:
        require("job", ["mlflow"], "tracking=mlflow")
        if URI not in os.environ:
            raise StageError(
                f"tracking=mlflow, but {URI} names no server", cure=f"export {URI}=…, or tracking=tensorboard"
            )
    return set(asked) - {"none"}


def mlflow_tracking(run_name: str, say: Callable[[str], None]) -> TrainerCallback | None:
    """The callback that logs to the server that MLFLOW_TRACKING_URI names; None where the package is missing."""
    try:
        return MlflowTracking(os.environ[URI], run_name, say)
    except ImportError:
        say("metrics do not go to MLflow: pip install 'ftkit[job]'")
        return None


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
