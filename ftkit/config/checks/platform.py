"""Stages and platform: what ``compute`` asks for, and whether Azure can be asked at all."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ftkit.config.checkpoint import published_with_shape
from ftkit.config.compute import AzureCompute, LocalCompute
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, STAGE_WORDS, Stage
from ftkit.errors import Problem, nearest
from ftkit.processes import one_of_several

MLFLOW = "MLFLOW_TRACKING_URI"


def stages_of(config: Config) -> list[Stage]:
    """Those asked for that there are."""
    return [BY_NAME[name] for name in config.stages if name in BY_NAME]


def stage_exists(config: Config) -> Iterator[Problem]:
    for name in config.stages:
        if name not in STAGE_WORDS:
            close = nearest(name, STAGE_WORDS)
            hint = f"did you mean stage={close}? " if close else ""
            yield Problem("stage", f"no stage {name!r}", "", f"{hint}there are {', '.join(STAGE_WORDS)}")


def compute_fits_its_platform(config: Config) -> Iterator[Problem]:
    compute = config.compute
    if isinstance(compute, AzureCompute) and not compute.instance_type:
        what = "null, but an Azure ML job needs a VM size"
        yield Problem("compute.instance_type", what, "", "for instance compute.instance_type=Standard_NC40ads_H100_v5")
    if isinstance(compute, LocalCompute) and compute.nodes > 1 and "train" in config.stages and not one_of_several():
        what = f"{compute.nodes} nodes, but this machine is one; stage=plan prints the torchrun line for each of them"
        cure = f"compute.nodes=1 compute.gpus_per_node={compute.nodes * compute.gpus_per_node}"
        yield Problem("compute.nodes", what, "", cure)


def trackio_and_wandb_are_not_in_a_jobs_image(config: Config) -> Iterator[Problem]:
    if not config.compute.elsewhere:
        return
    if "wandb" in config.tracking_words:
        what = "wandb is not in the image of an Azure ML job, nor is its key"
        yield Problem("tracking", what, "", "tracking=auto, which sends them to the workspace's MLflow")
    if "trackio" in config.tracking_words:
        what = "trackio keeps metrics in a folder of this machine, but training runs in an Azure ML job"
        yield Problem("tracking", what, "", "tracking=auto, which sends them to the workspace's MLflow")


def mlflow_has_a_server(config: Config) -> Iterator[Problem]:
    """A job has the workspace's own."""
    here = not config.compute.elsewhere and not config.job.records
    trained = {"plan", "train"} & {*config.stages}
    if here and trained and "mlflow" in config.tracking_words and not os.environ.get(MLFLOW):
        cure = f"tracking=tensorboard, or first export {MLFLOW}=http://…"
        yield Problem("tracking", f"mlflow, but {MLFLOW} names no server", "", cure)


def workspace_is_named(config: Config) -> Iterator[Problem]:
    """Azure is asked as soon as a stage's work happens there, by plan only with check=true."""
    asking = [stage.name for stage in stages_of(config) if stage.place_of(config) == "azureml"]
    if config.check and "plan" in config.stages:
        asking += ["plan check=true"] if "azureml" in config.platforms else []
    workspace = config.workspace
    names = {
        "SUBSCRIPTION_ID": workspace.subscription_id,
        "RESOURCE_GROUP": workspace.resource_group,
        "WORKSPACE_NAME": workspace.workspace_name,
    }
    missing = [name for name, value in names.items() if not value]
    if asking and missing:
        keys = ", ".join(f"{name.lower()}: …" for name in missing)
        are = "is" if len(missing) == 1 else "are"
        yield Problem(
            "workspace",
            f"stage={asking[0]} asks Azure, and {', '.join(missing)} {are} not set",
            "",
            f"export {missing[0]}=…, or workspace: {{{keys}}} in conf/local/default.yaml; or compute=local",
        )


def registered_model_needs_a_tokenizer_here(config: Config) -> Iterator[Problem]:
    model, key = config.model, "model.pretrained_model_name_or_path"
    name = model.pretrained_model_name_or_path
    if not name.startswith("azureml:") or config.job.model:
        return
    if not isinstance(config.compute, AzureCompute):
        what = f"{name} is in Azure ML, but compute.platform is {config.compute.platform}"
        yield Problem(key, what, "", "compute=h100x1, or the hub id or folder of the model")
    if "prepare" in config.stages and model.tokenizer is None:
        what = "null, but prepare runs here, where a registered model cannot be read"
        hub_id = published_with_shape(model.architecture) or "<hub id>"
        cure = f"model.tokenizer={hub_id}, or a folder with its tokenizer"
        yield Problem("model.tokenizer", what, "", cure)


def hub_token_has_one_place(config: Config) -> Iterator[Problem]:
    if config.secrets.hf_token and config.secrets.hf_connection:
        cure = "leave one: secrets.hf_token=null, or secrets.hf_connection=null"
        yield Problem("secrets", "hf_token and hf_connection are both given", "", cure)


def nothing_of_the_environment_goes_into_jobs(config: Config) -> Iterator[Problem]:
    """A job's configuration can be read by everybody in the workspace."""
    if not config.compute.elsewhere or not any(stage.runs_as_job(config) for stage in stages_of(config)):
        return
    for key, text in config.from_environment.items():
        yield Problem(
            key,
            f"is {text} of this machine's environment, which no job is given",
            "",
            f"{key}=<the value itself>, if it is no secret; a token of the model hub goes by secrets.hf_token",
        )


def hub_is_pushed_to_from_here(config: Config) -> Iterator[Problem]:
    registration, registers = config.registration, {"plan", "register", "all"} & {*config.stages}
    if registration.hub and registers and config.compute.elsewhere:
        what = (
            f"{registration.hub}, but the merged model lies in the store of an Azure ML job; register pushes from here"
        )
        yield Problem("registration.hub", what, "", "registration.hub=null, or compute=local")
    if registration.hub and "adapter" in registration.hub_parts and config.lora is None:
        what = "adapter, but lora=none trains no adapter"
        parts = ",".join(part for part in registration.hub_parts if part != "adapter")
        yield Problem("registration.hub_parts", what, "", f"registration.hub_parts=[{parts}]")


def tags_are_not_ours(config: Config) -> Iterator[Problem]:
    for key in config.tags:
        if key.lower().startswith("ftkit-") or key.lower() in ("made-by", "digest"):
            yield Problem(f"tags.{key}", "is a tag that ftkit sets itself", "", "another key")


CHECKS = (
    hub_is_pushed_to_from_here,
    tags_are_not_ours,
    nothing_of_the_environment_goes_into_jobs,
    stage_exists,
    compute_fits_its_platform,
    trackio_and_wandb_are_not_in_a_jobs_image,
    mlflow_has_a_server,
    workspace_is_named,
    registered_model_needs_a_tokenizer_here,
    hub_token_has_one_place,
)
