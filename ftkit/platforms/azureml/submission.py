"""What a job is made of: code snapshot, configuration and records, inputs, output, one command line for every rank."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from azure.ai.ml import Input, Output, command
from azure.ai.ml.entities import ManagedIdentityConfiguration

from ftkit.assets import asset_path
from ftkit.config.lm_eval import include_folder
from ftkit.config.option_files import PACKAGE, shipped_conf
from ftkit.config.schema import Config
from ftkit.files import check_links
from ftkit.platforms import job_files
from ftkit.platforms.azureml.environments import Environment
from ftkit.platforms.azureml.ownership import Mark, run_key
from ftkit.platforms.base import JobRequest, Say

OUTPUT = "runs"
"""Name of the job's output: it takes the place of ``run.outputs``."""
TAG = "ftkit-"
"""Begins the tags by which a job is known again."""


def store_name(run: str, job: str) -> str:
    """The folder of a job's output."""
    return f"{run}-{job_files.digest(job)}"


@contextmanager
def snapshot(config: Config) -> Iterator[Path]:
    """A folder with the code that the job gets: the package as it is here, without what the job has no use for.

    Nothing of ``conf/local``, no file whose name begins with a dot and no link goes with it.
    """
    model = config.model.pretrained_model_name_or_path
    needed = Path(asset_path(model)) if model.startswith("package:") else None

    def left_out(folder: str, names: list[str]) -> list[str]:
        in_assets = Path(folder) == PACKAGE / "assets"
        return [
            name
            for name in names
            if name == "__pycache__"
            or name.startswith(".")
            or (name == "local" and Path(folder) == shipped_conf())
            or Path(folder, name).is_symlink()
            or (name in ("conf", "environment") and Path(folder) == PACKAGE)
            or (in_assets and not name.endswith(".py") and Path(folder, name) != needed)
        ]

    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "code")
        shutil.copytree(PACKAGE, code / PACKAGE.name, ignore=left_out)
        shutil.copytree(shipped_conf(), code / PACKAGE.name / "conf", ignore=left_out)
        yield code


@contextmanager
def whole_model(config: Config, say: Say) -> Iterator[str]:
    """The base model as the job's input: where it is a folder here, one in which no ignore file drops a part of it.

    Azure ML's SDK leaves out what a ``.amlignore`` or ``.gitignore`` in a folder names, weights as well.
    """
    model = config.model.pretrained_model_name_or_path
    source = Path(model).expanduser()
    if model.startswith("azureml:") or not source.is_dir():
        yield model
        return
    hidden = sorted(path.name for path in source.iterdir() if path.name.startswith("."))
    if hidden:
        say(f"of {model} all is sent but {', '.join(hidden)}")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder, source.resolve().name)  # its name goes into the address of the upload
        for path in source.rglob("*"):
            relative = path.relative_to(source)
            if path.is_file() and relative.parts[0] not in hidden:
                (staged / relative).parent.mkdir(parents=True, exist_ok=True)
                (staged / relative).symlink_to(path.resolve())
        yield str(staged)


def write_given(config: Config, request: JobRequest, folder: Path) -> None:
    """Write what the job starts from, and the files of questions and tasks that it asks."""
    job_files.write_given(config, request, folder)
    if task := _task_file(config, request):
        shutil.copy(task, folder)
    if own_tasks := _own_tasks(config, request):
        check_links(own_tasks)
        shutil.copytree(own_tasks, folder / own_tasks.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def job(
    config: Config,
    request: JobRequest,
    *,
    name: str,
    owner: str,
    code: Path,
    given: Path,
    model: str,
    environment: Environment,
    store: str,
    changes: Mapping[str, str] = MappingProxyType({}),
    parameters: Sequence[str] = (),
) -> Any:
    """The command job.

    Args:
        name: of the job.
        owner: the identity that submits it.
        code: folder with the snapshot.
        given: folder with configuration and records.
        model: the base model: a folder that is sent, an address in Azure ML, or what is fetched elsewhere.
        store: address that the output is mounted from; a further job on the same one goes on where this one ended.
        changes: overrides of the configuration.
        parameters: inputs that a sweep gives its values to.
    """
    compute = config.azure_compute
    several = "train" in request.stages and config.processes > 1
    inputs, mounted = _inputs(config, request, given, model)
    swept = [f"{key}={value}" for key, value in changes.items()]
    begin = "python -m ftkit --resolved ${{inputs.given}}/config.yaml"
    line = [begin, f"stage={','.join(request.stages)}", *mounted, *swept]
    made = command(
        name=name,
        display_name=f"{config.run.name}: {', '.join(request.stages)}",
        experiment_name=compute.experiment_name,
        tags=tags(config, request, store, owner),
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
        identity=_identity(config),
    )
    made.set_limits(timeout=round(compute.timeout_hours * 3600))
    return made


def _identity(config: Config) -> ManagedIdentityConfiguration | None:
    """Whose rights the job has where it reads a secret, or where the user names an identity for it."""
    given = config.azure_compute.identity_client_id
    needed = given or config.secrets.hf_token or config.secrets.hf_connection
    return ManagedIdentityConfiguration(client_id=given) if needed else None


def _task_file(config: Config, request: JobRequest) -> Path | None:
    """The file of questions that the job's evaluation asks."""
    path = config.evaluation.path if "evaluate" in request.stages else None
    return None if path is None else Path(path).expanduser()


def _own_tasks(config: Config, request: JobRequest) -> Path | None:
    """The folder with the user's tasks for lm-eval."""
    return include_folder(config.evaluation.lm_eval, None) if "evaluate" in request.stages else None


def tags(config: Config, request: JobRequest, store: str, owner: str) -> dict[str, str]:
    """By which a job is known again, on another machine as well."""
    kept = {"stages": ",".join(request.stages), "fingerprint": request.fingerprint, "store": store}
    of_run = {run_key(config.run.name): config.run.name}
    return {
        **Mark(config.run.name, owner, given=config.tags).tags,
        **of_run,
        **{TAG + key: value for key, value in kept.items()},
    }


def _inputs(config: Config, request: JobRequest, given: Path, model: str) -> tuple[dict[str, Input], list[str]]:
    """Inputs by name, and the overrides that tell the job where they are mounted."""
    inputs = {
        "given": Input(type="uri_folder", path=str(given)),
        "data": Input(type="uri_folder", path=request.records["publish"].result["path"]),
    }
    changes = ["run.outputs=${{outputs.runs}}", "job.records=${{inputs.given}}", "job.data=${{inputs.data}}"]
    if model.startswith("azureml://") or Path(model).is_dir():
        inputs["model"] = Input(type="uri_folder", path=model)
    elif model.startswith("azureml:"):
        inputs["model"] = Input(type="custom_model", path=model)
    if _task_file(config, request) or _own_tasks(config, request):
        changes.append("job.evaluation=${{inputs.given}}")
    if "model" in inputs:
        changes.append("job.model=${{inputs.model}}")
    if request.earlier:
        inputs["earlier"] = Input(type="uri_folder", path=request.earlier)
        changes.append("job.earlier=${{inputs.earlier}}")
    return inputs, changes
