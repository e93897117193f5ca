"""What a job is made of: code snapshot, configuration and records, inputs, output, one command line for every rank."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from azure.ai.ml import Input, Output, command
from azure.ai.ml.entities import ManagedIdentityConfiguration

from ftkit.assets import asset_path
from ftkit.config.lm_eval import include_folder
from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.config.sources import PACKAGE, shipped_conf
from ftkit.platforms.azureml.environments import Environment
from ftkit.platforms.azureml.work import Work
from ftkit.records import path_of

OUTPUT = "runs"
"""Name of the job's output: it takes the place of ``run.outputs``."""
TAG = "ftkit-"
"""Begins the tags by which a job is known again."""


def job_name(config: Config) -> str:
    """A name that no job has yet."""
    readable = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in config.run.name)
    return f"{readable[:60]}-{secrets.token_hex(4)}"


@contextmanager
def snapshot(config: Config) -> Iterator[Path]:
    """A folder with the code that the job gets: the package as it is here, without what the job has no use for."""
    model = config.model.pretrained_model_name_or_path
    needed = Path(asset_path(model)) if model.startswith("package:") else None

    def left_out(folder: str, names: list[str]) -> list[str]:
        in_assets = Path(folder) == PACKAGE / "assets"
        return [
            name
            for name in names
            if name == "__pycache__"
            or (name in ("conf", "environment") and Path(folder) == PACKAGE)
            or (in_assets and not name.endswith(".py") and Path(folder, name) != needed)
        ]

    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "code")
        shutil.copytree(PACKAGE, code / PACKAGE.name, ignore=left_out)
        shutil.copytree(shipped_conf(), code / PACKAGE.name / "conf")
        yield code


def write_given(config: Config, work: Work, folder: Path) -> None:
    """Write what the job starts from: the resolved configuration, records of the stages before it, tasks' files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    freeze(config.model_copy(update={"attach": None, "check": False, "stage": None}), folder / "config.yaml")
    if task := _task_file(config, work):
        shutil.copy(task, folder)
    if own_tasks := _own_tasks(config, work):
        shutil.copytree(own_tasks, folder / own_tasks.name, ignore=shutil.ignore_patterns("__pycache__"))
    for stage, record in work.records.items():
        path = path_of(folder, stage)
        path.parent.mkdir()
        path.write_text(json.dumps(asdict(record), ensure_ascii=False), encoding="utf-8")


def job(
    config: Config,
    work: Work,
    *,
    code: Path,
    given: Path,
    environment: Environment,
    store: str,
    changes: Mapping[str, str] = MappingProxyType({}),
    parameters: Sequence[str] = (),
) -> Any:
    """The command job.

    Args:
        code: folder with the snapshot.
        given: folder with configuration and records.
        store: address that the output is mounted from; a further job on the same one goes on where this one ended.
        changes: overrides of the configuration.
        parameters: inputs that a sweep gives its values to.
    """
    compute = config.compute
    several = "train" in work.stages and config.processes > 1
    inputs, mounted = _inputs(config, work, given)
    swept = [f"{key}={value}" for key, value in changes.items()]
    begin = "python -m ftkit --resolved ${{inputs.given}}/config.yaml"
    line = [begin, f"stage={','.join(work.stages)}", *mounted, *swept]
    made = command(
        name=job_name(config),
        display_name=f"{config.run.name}: {', '.join(work.stages)}",
        experiment_name=compute.experiment_name,
        tags=tags(config, work, store),
        code=str(code),
        command=" ".join(line),
        environment=environment.reference,
        environment_variables={**compute.environment_variables, "PYTHONUNBUFFERED": "1"},
        inputs={**inputs, **dict.fromkeys(parameters, "")},
        outputs={OUTPUT: Output(type="uri_folder", mode="rw_mount", path=store)},
        compute=compute.cluster,
        instance_type=None if compute.cluster else compute.instance_type,
        instance_count=compute.nodes if several else 1,
        shm_size=compute.shm_size,
        job_tier="Spot" if compute.spot and not compute.cluster else None,
        distribution={"type": "PyTorch", "process_count_per_instance": compute.gpus_per_node} if several else None,
        identity=ManagedIdentityConfiguration() if config.secrets.hf_token or config.secrets.hf_connection else None,
    )
    made.set_limits(timeout=round(compute.timeout_hours * 3600))
    return made


def _task_file(config: Config, work: Work) -> Path | None:
    """The file of questions that the job's evaluation asks."""
    path = config.evaluation.path if "evaluate" in work.stages else None
    return None if path is None else Path(path).expanduser()


def _own_tasks(config: Config, work: Work) -> Path | None:
    """The folder with the user's tasks for lm-eval."""
    return include_folder(config.evaluation.lm_eval, None) if "evaluate" in work.stages else None


def tags(config: Config, work: Work, store: str) -> dict[str, str]:
    """By which a job is known again, on another machine as well."""
    kept = {"run": config.run.name, "stages": ",".join(work.stages), "fingerprint": work.fingerprint, "store": store}
    return {TAG + key: value for key, value in kept.items()}


def _inputs(config: Config, work: Work, given: Path) -> tuple[dict[str, Input], list[str]]:
    """Inputs by name, and the overrides that tell the job where they are mounted."""
    model = config.model.pretrained_model_name_or_path
    inputs = {
        "given": Input(type="uri_folder", path=str(given)),
        "data": Input(type="uri_folder", path=work.records["publish"].result["path"]),
    }
    changes = ["run.outputs=${{outputs.runs}}", "run.records=${{inputs.given}}", "dataset.folder=${{inputs.data}}"]
    if model.startswith("azureml://") or Path(model).expanduser().is_dir():
        inputs["model"] = Input(type="uri_folder", path=model)
    elif model.startswith("azureml:"):
        inputs["model"] = Input(type="custom_model", path=model)
    if _task_file(config, work) or _own_tasks(config, work):
        changes.append("evaluation.folder=${{inputs.given}}")
    if "model" in inputs:
        changes.append("model.folder=${{inputs.model}}")
    if work.earlier:
        inputs["earlier"] = Input(type="uri_folder", path=work.earlier)
        changes.append("run.earlier=${{inputs.earlier}}")
    return inputs, changes
