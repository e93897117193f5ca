"""Combinations that are known to fail, or to do something else than they say: one function each, and all run.

Those that fail in training are in ``ftkit.config.training_checks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ftkit.config import lm_eval_checks, training_checks
from ftkit.config.converter import converter_can_be_run
from ftkit.config.data_files import DATA_SUFFIXES, data_files, is_data_file, is_pattern
from ftkit.config.gate import parse
from ftkit.config.overrides import nearest
from ftkit.config.places import place_of, runs_as_job
from ftkit.config.schema import SIDE_STAGES, STAGES, Config
from ftkit.errors import Problem

Check = Callable[[Config], Iterator[Problem]]


def all_checks(config: Config) -> Iterator[Problem]:
    """Run every check.

    Yields:
        Problems without ``where``; the caller finds the file.
    """
    for check in CHECKS:
        yield from check(config)


def stage_exists(config: Config) -> Iterator[Problem]:
    known = (*STAGES, *SIDE_STAGES, "all")
    for name in config.stages:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean stage={close}? " if close else ""
            yield Problem("stage", f"no stage {name!r}", "", f"{hint}there are {', '.join(known)}")


def compute_fits_its_platform(config: Config) -> Iterator[Problem]:
    compute = config.compute
    if compute.platform == "azureml" and not compute.instance_type:
        yield Problem(
            "compute.instance_type", "null, but an Azure ML job needs a VM size", "", "for instance compute=h100x1"
        )
    if compute.platform == "local" and compute.nodes > 1:
        yield Problem(
            "compute.nodes",
            f"{compute.nodes} nodes, but this machine is one",
            "",
            f"compute.nodes=1 compute.gpus_per_node={compute.nodes * compute.gpus_per_node}",
        )


def trackio_stays_on_this_machine(config: Config) -> Iterator[Problem]:
    if config.compute.platform == "azureml" and "trackio" in config.trackers:
        yield Problem(
            "tracking",
            "trackio, which keeps metrics in a folder of this machine, and training runs in an Azure ML job",
            "",
            "tracking=auto: the job's metrics go to the workspace's MLflow",
        )


def deployment_fits_its_platform(config: Config) -> Iterator[Problem]:
    deployment, compute = config.deployment, config.compute
    if deployment.platform == "azureml" and not deployment.instance_type:
        yield Problem(
            "deployment.instance_type",
            "null, but a managed endpoint needs a VM size",
            "",
            "for instance deployment=managed",
        )
    if deployment.platform != compute.platform:
        other = "local" if compute.platform == "local" else "managed"
        yield Problem(
            "deployment.platform",
            f"{deployment.platform}, but compute.platform is {compute.platform}, where the model is registered",
            "",
            f"deployment={other}",
        )


def server_has_its_image(config: Config) -> Iterator[Problem]:
    deployment = config.deployment
    if (deployment.server, deployment.platform) == ("vllm", "azureml") and not deployment.image:
        yield Problem("deployment.image", "null, but vllm is served from an image", "", "deployment=vllm names one")
    if deployment.server == "score" and deployment.image:
        yield Problem(
            "deployment.image",
            f"{deployment.image}, but server=score runs in the image of environment.serve",
            "",
            "deployment.image=null, or deployment=vllm",
        )
    if (deployment.server, deployment.platform) == ("vllm", "local") and deployment.instance_count > 1:
        said = f"{deployment.instance_count}, but one vLLM is started here"
        yield Problem("deployment.instance_count", said, "", "deployment.instance_count=1, or deployment.server=score")


def adapters_are_served_here(config: Config) -> Iterator[Problem]:
    deployment, key = config.deployment, "deployment.adapters"
    if not deployment.adapters:
        return
    names = ", ".join(deployment.adapters)
    if (deployment.platform, deployment.server) != ("local", "score"):
        said = f"{names}, but only score.py on the local platform serves adapters by name"
        yield Problem(key, said, "", "deployment.adapters={}, or compute=local deployment=local")
    if deployment.gate:
        said = f"{names}, but deployment.gate judges the merged model, which is not served beside adapters"
        yield Problem(key, said, "", "deployment.gate=[], or deployment.adapters={}")
    if config.model.name in deployment.adapters:
        said = f"{config.model.name} is the name of the base model itself"
        yield Problem(key, said, "", f"another name than {config.model.name}")


def rollout_ends_at_100(config: Config) -> Iterator[Problem]:
    steps = config.deployment.rollout
    if not steps or steps[-1] != 100 or steps != sorted(set(steps)):
        yield Problem(
            "deployment.rollout", f"{steps} does not rise to 100 percent", "", "deployment.rollout=[10,50,100]"
        )


def workspace_is_named(config: Config) -> Iterator[Problem]:
    """Azure is asked as soon as a stage's work happens there, by plan only with check=true."""
    asking = [name for name in config.stages if place_of(name, config) == "azureml"]
    if config.check and "plan" in config.stages:
        asking += ["plan check=true"] if "azureml" in (config.compute.platform, config.deployment.platform) else []
    workspace = config.workspace
    names = {
        "SUBSCRIPTION_ID": workspace.subscription_id,
        "RESOURCE_GROUP": workspace.resource_group,
        "WORKSPACE_NAME": workspace.workspace_name,
    }
    missing = [name for name, value in names.items() if not value]
    if asking and missing:
        keys = ", ".join(f"{name.lower()}: …" for name in missing)
        yield Problem(
            "workspace",
            f"stage={asking[0]} asks Azure, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            "",
            f"export {missing[0]}=…, or workspace: {{{keys}}} in conf/local/default.yaml",
        )


def registered_model_needs_a_tokenizer_here(config: Config) -> Iterator[Problem]:
    model = config.model
    if not model.pretrained_model_name_or_path.startswith("azureml:") or model.folder:
        return
    if config.compute.platform != "azureml":
        yield Problem(
            "model.pretrained_model_name_or_path",
            f"{model.pretrained_model_name_or_path} is in Azure ML, but compute.platform is {config.compute.platform}",
            "",
            "compute=h100x1, or the hub id or folder of the model",
        )
    if "prepare" in config.stages and model.tokenizer is None:
        yield Problem(
            "model.tokenizer",
            "null, but prepare runs here, where a registered model cannot be read",
            "",
            "model.tokenizer=openai/gpt-oss-20b, or a folder with its tokenizer",
        )


def hub_token_has_one_place(config: Config) -> Iterator[Problem]:
    if config.secrets.hf_token and config.secrets.hf_connection:
        yield Problem("secrets", "hf_token and hf_connection are both given", "", "leave one: secrets.hf_token=null")


def gate_can_be_read(config: Config) -> Iterator[Problem]:
    for rule in config.deployment.gate:
        try:
            read = parse(rule)
        except ValueError as error:
            yield Problem("deployment.gate", f"{rule!r}: {error}", "", 'for instance ["thinks_in_japanese >= 0.95"]')
            continue
        if read.of_lm_eval and not config.evaluation.lm_eval.tasks:
            what = f"{rule!r}, and evaluate asks no task of lm-eval"
            yield Problem("deployment.gate", what, "", f"evaluation.lm_eval.tasks=[{read.measure.split('.')[1]}]")
        if read.against == "adapter" and not config.evaluation.adapter:
            what = f"{rule!r}, and evaluate does not ask the adapter"
            yield Problem("deployment.gate", what, "", "evaluation.adapter=true, or a rule against base")


def dataset_files_exist(config: Config) -> Iterator[Problem]:
    path = Path(config.dataset.path)
    if "prepare" not in config.stages or data_files(config.dataset.path) != []:
        return
    if path.is_dir() or is_pattern(config.dataset.path):
        yield Problem("dataset.path", f"no file to read in {path}", "", f"files are {', '.join(DATA_SUFFIXES)}, or .gz")
        return
    neighbours = [str(p) for p in path.parent.glob("*") if is_data_file(p)] if path.parent.is_dir() else []
    close = nearest(str(path), neighbours)
    yield Problem(
        "dataset.path",
        f"no such file: {path}",
        "",
        f"did you mean {close}?" if close else "give the path of your rows",
    )


def columns_say_where_the_chat_is(config: Config) -> Iterator[Problem]:
    columns = config.dataset.columns
    pair = [name for name in ("question", "answer") if getattr(columns, name) is not None]
    if columns.messages is not None and (pair or columns.thinking):
        clash = [*pair, *(["thinking"] if columns.thinking else [])]
        drop = " ".join(f"dataset.columns.{name}=null" for name in clash)
        yield Problem("dataset.columns", f"messages and {' and '.join(clash)} are both given", "", f"leave one: {drop}")
    elif columns.messages is None and len(pair) < 2:
        yield Problem(
            "dataset.columns",
            "neither messages nor question and answer are given",
            "",
            "dataset.columns.question=… dataset.columns.answer=…, or dataset.columns.messages=…",
        )


def task_file_exists(config: Config) -> Iterator[Problem]:
    evaluation = config.evaluation
    if "evaluate" not in config.stages or evaluation.path is None or evaluation.folder:
        return
    path = Path(evaluation.path).expanduser()
    if path.is_file() and is_data_file(path):
        return
    kinds = f"a file of questions and answers is {', '.join(DATA_SUFFIXES)}, or .gz"
    neighbours = [str(p) for p in path.parent.glob("*") if is_data_file(p)] if path.parent.is_dir() else []
    close = nearest(str(path), neighbours)
    what = f"{path} is none that can be read" if path.exists() else f"no such file: {path}"
    yield Problem("evaluation.path", what, "", f"did you mean {close}?" if close else kinds)


def lm_eval_is_there_with_its_tasks(config: Config) -> Iterator[Problem]:
    settings = config.evaluation.lm_eval
    if not settings.tasks:
        yield from lm_eval_checks.problems_without_tasks(settings)
        return
    yield from lm_eval_checks.problems_of_names(settings)
    if "evaluate" in config.stages:
        in_job = runs_as_job("evaluate", config)
        yield from lm_eval_checks.problems_of_image() if in_job else lm_eval_checks.problems_here(settings)


def adapter_is_there_to_ask(config: Config) -> Iterator[Problem]:
    if config.evaluation.adapter and config.lora is None:
        yield Problem(
            "evaluation.adapter",
            "true, but lora=none trains no adapter",
            "",
            "evaluation.adapter=false, or lora=experts",
        )


def several_samples_need_a_temperature(config: Config) -> Iterator[Problem]:
    evaluation = config.evaluation
    if evaluation.samples > 1 and evaluation.temperature == 0:
        what = f"{evaluation.samples}, which would all be the same at temperature 0"
        yield Problem("evaluation.samples", what, "", "evaluation.temperature=1.0, or evaluation.samples=1")


def invoke_has_one_request(config: Config) -> Iterator[Problem]:
    invoke = config.invoke
    given = [name for name in ("prompt", "messages", "file") if getattr(invoke, name) is not None]
    if "invoke" not in config.stages or len(given) == 1:
        return
    if not given:
        yield Problem(
            "invoke", "nothing to ask", "", "invoke.prompt='…', invoke.messages=[…] or invoke.file=request.json"
        )
    else:
        drop = " ".join(f"invoke.{name}=null" for name in given[1:])
        yield Problem("invoke", f"{' and '.join(given)} are both given", "", f"leave one: {drop}")


CHECKS: tuple[Check, ...] = (
    stage_exists,
    compute_fits_its_platform,
    trackio_stays_on_this_machine,
    deployment_fits_its_platform,
    server_has_its_image,
    adapters_are_served_here,
    rollout_ends_at_100,
    workspace_is_named,
    training_checks.reentrant_checkpointing_under_ddp,
    training_checks.dropout_on_experts,
    training_checks.target_parameters_exist,
    training_checks.something_is_trained,
    training_checks.flex_attention_needs_a_gpu,
    training_checks.evaluation_has_what_it_needs,
    training_checks.packed_weights_need_low_rank_experts,
    training_checks.packed_weights_stay_whole_and_frozen,
    training_checks.sharding_has_several_processes,
    training_checks.schedule_fits_its_arguments,
    registered_model_needs_a_tokenizer_here,
    training_checks.max_steps_is_positive_or_minus_one,
    converter_can_be_run,
    gate_can_be_read,
    hub_token_has_one_place,
    dataset_files_exist,
    columns_say_where_the_chat_is,
    task_file_exists,
    lm_eval_is_there_with_its_tasks,
    adapter_is_there_to_ask,
    several_samples_need_a_temperature,
    invoke_has_one_request,
)
