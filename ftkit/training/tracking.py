"""Who gets the metrics: TensorBoard, trackio's folder here, an MLflow server (the workspace's own in a job), wandb."""

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
from ftkit.packages import install_command, require
from ftkit.records import flat
from ftkit.training.progress import line_of

URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "ftkit"
WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE that ask no server."""
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""For mlflow where the user has not set them: a server that is down delays little, and nobody else hears of the run."""


def trackers(config: Config) -> set[str]:
    """Who gets the metrics, as ``tracking`` and the environment say; trackio is given its folder.

    Raises:
        StageError: MLflow, trackio or wandb is asked for by name and its package is missing, or no MLflow server is
            named, or nobody is signed in to wandb.
    """
    asked = config.tracking_words
    if "auto" in asked:
        return {"tensorboard", "mlflow"} if URI in os.environ else {"tensorboard"}
    if "trackio" in asked:
        require("trackio", ["trackio"], "tracking=trackio")
        # TRL imports trackio for method=grpo, and trackio reads its folder as it is imported.
        os.environ["TRACKIO_DIR"] = os.environ.get("TRACKIO_DIR") or str(Path(config.run.outputs, "_trackio").resolve())
    if "wandb" in asked:
        require("wandb", ["wandb"], "tracking=wandb")
        _check_signed_in()
    if "mlflow" in asked:
        require("job", ["mlflow"], "tracking=mlflow")
        if URI not in os.environ:
            raise StageError(
                f"tracking=mlflow, but {URI} names no server", cure=f"export {URI}=…, or tracking=tensorboard"
            )
    return asked - {"none"}


def _check_signed_in() -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    if os.environ.get("WANDB_MODE") not in WITHOUT_ACCOUNT and not wandb.api.api_key:
        cure = "wandb login; or export WANDB_MODE=offline, which keeps them here"
        raise StageError("tracking=wandb, but nobody is signed in to it", cure=cure)


def tracking_callbacks(config: Config, names: set[str], say: Callable[[str], None]) -> Iterator[TrainerCallback]:
    """The callbacks that log to MLflow's server, trackio's folder and wandb; a missing package of MLflow's is said."""
    if "trackio" in names:
        yield TrackioTracking(config, say)
    if "wandb" in names:
        yield WandbTracking(config, say)
    if "mlflow" in names:
        try:
            yield MlflowTracking(os.environ[URI], config.run.name, say)
        except ImportError:
            say(f"metrics do not go to MLflow: {install_command('job')}")


class TrackioTracking(TrainerCallback):
    """Logs each line of metrics to the folder ``TRACKIO_DIR``, which holds all runs below the same ``run.outputs``.

    transformers' own callback takes up any earlier run of the same name, so that two trainings would make one curve.

    Args:
        config: the whole configuration; its groups that a training depends on go with the run.
        say: prints a line.
    """

    def __init__(self, config: Config, say: Callable[[str], None]):
        import trackio

        self._trackio, self._config = trackio, config
        say(f"metrics go to trackio: TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show --project {EXPERIMENT}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.init(
                project=EXPERIMENT,
                name=self._config.run.name,
                config=self._config.model_dump(include={"model", "dataset", "lora", "method", "sft"}),
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


class WandbTracking(TrainerCallback):
    """Logs each line of metrics to wandb, as project ``ftkit`` or ``WANDB_PROJECT``; a resumed training is one run.

    transformers' own callback takes the run's name from the output folder and sends the model's whole configuration.

    Args:
        config: the whole configuration; its groups that a training depends on go with the run, but for values that
            came from the environment.
        say: prints a line.
    """

    def __init__(self, config: Config, say: Callable[[str], None]):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb, self._config, self._say = wandb, config, say
        self._run: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        known, folder = Path(str(args.output_dir), "wandb_id"), Path(self._config.run.outputs, "_wandb").resolve()
        resumed = known.read_text(encoding="utf-8") if state.global_step and known.is_file() else None
        settings = self._wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True)
        online = os.environ.get("WANDB_MODE") not in WITHOUT_ACCOUNT
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
                name=self._config.run.name,
                dir=os.environ.get("WANDB_DIR", str(folder)),
                config=self._settings(),
                id=resumed,
                resume="allow" if resumed and online else None,
                settings=settings,
            )
        except self._wandb.Error as error:  # its server is down, say: the training matters more
            self._say(f"metrics do not go to wandb: {str(error).splitlines()[0]}")
            return
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(self._run.id, encoding="utf-8")
        self._say(f"metrics go to wandb: {self._run.url or f'wandb sync {Path(self._run.dir).parent}'}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._run and (line := line_of({"step": state.global_step, **kwargs["logs"]})):
            step = line.pop("step")
            self._run.log({name: value for name, value in line.items() if value is not None}, step=step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._run:
            self._run.finish()

    def _settings(self) -> dict[str, Any]:
        sent = flat(self._config.model_dump(include={"model", "dataset", "lora", "sft"}))
        return {key: value for key, value in sent if key not in self._config.from_environment}


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
