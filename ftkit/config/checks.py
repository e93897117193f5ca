"""Combinations that are known to fail, or to do something else than they say: one function each, and all run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ftkit.config.overrides import nearest
from ftkit.config.schema import SIDE_STAGES, STAGES, Config
from ftkit.errors import Problem

Check = Callable[[Config], Iterator[Problem]]
DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


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
    if deployment.platform == "local" and deployment.instance_count > 1:
        yield Problem(
            "deployment.instance_count",
            f"{deployment.instance_count}, but one server runs here",
            "",
            "deployment.instance_count=1",
        )


def reentrant_checkpointing_under_ddp(config: Config) -> Iterator[Problem]:
    sft = config.sft
    reentrant = sft.gradient_checkpointing and sft.gradient_checkpointing_kwargs.get("use_reentrant", True)
    if config.processes > 1 and reentrant and sft.ddp_find_unused_parameters is not False:
        yield Problem(
            "sft.gradient_checkpointing_kwargs",
            f"use_reentrant true with {config.processes} processes fails: Expected to mark a variable ready only once",
            "",
            "sft=ddp-safe",
        )


def dropout_on_experts(config: Config) -> Iterator[Problem]:
    if config.lora.lora_dropout > 0 and config.lora.target_parameters:
        yield Problem(
            "lora.lora_dropout",
            f"{config.lora.lora_dropout}, but PEFT has no dropout on expert tensors",
            "",
            "lora.lora_dropout=0.0, or lora=attention",
        )


def target_parameters_exist(config: Config) -> Iterator[Problem]:
    names = expert_parameters(config)
    for target in config.lora.target_parameters or []:
        if not any(name == target or name.endswith("." + target) for name in names):
            short = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", *names]
            close = nearest(target, short)
            hint = f"did you mean {close}?" if close else "for instance mlp.experts.gate_up_proj"
            yield Problem(
                "lora.target_parameters", f"{target!r} names no expert tensor of {config.model.name}", "", hint
            )


def something_is_trained(config: Config) -> Iterator[Problem]:
    if not config.lora.target_modules and not config.lora.target_parameters:
        yield Problem("lora", "neither target_modules nor target_parameters names anything", "", "lora=experts")


def flex_attention_needs_a_gpu(config: Config) -> Iterator[Problem]:
    if config.model.attn_implementation == "flex_attention" and config.compute.gib_per_gpu is None:
        yield Problem(
            "model.attn_implementation",
            "flex_attention needs a CUDA GPU, and compute.gib_per_gpu says there is none",
            "",
            "compute.gib_per_gpu=80 on a machine with GPUs, or model.attn_implementation=eager",
        )


def packed_weights_need_low_rank_experts(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.weights == "mxfp4" and model.experts_implementation != "ftkit_lora":
        yield Problem(
            "model.weights",
            f"mxfp4, but {model.experts_implementation} experts compute with dense weights",
            "",
            "model.experts_implementation=ftkit_lora, or model.weights=dense",
        )


def schedule_fits_its_arguments(config: Config) -> Iterator[Problem]:
    kind, arguments = config.sft.lr_scheduler_type, config.sft.lr_scheduler_kwargs
    known = {"min_lr_rate", "min_lr", "num_cycles"} if kind == "cosine_with_min_lr" else set()
    for name in arguments.keys() - known:
        yield Problem(
            "sft.lr_scheduler_kwargs",
            f"{kind} takes no {name!r}",
            "",
            "sft.lr_scheduler_kwargs={}" if not known else "",
        )
    if kind == "cosine_with_min_lr" and not arguments.keys() & {"min_lr_rate", "min_lr"}:
        yield Problem(
            "sft.lr_scheduler_kwargs", f"{kind} needs min_lr_rate", "", "sft.lr_scheduler_kwargs.min_lr_rate=0.1"
        )


def max_steps_is_positive_or_minus_one(config: Config) -> Iterator[Problem]:
    if config.sft.max_steps == 0 or config.sft.max_steps < -1:
        yield Problem(
            "sft.max_steps", f"{config.sft.max_steps} is neither -1 nor positive", "", "-1 goes by sft.num_train_epochs"
        )


def dataset_file_exists(config: Config) -> Iterator[Problem]:
    path = Path(config.dataset.path)
    if "prepare" not in config.stages or not config.dataset.path.endswith(DATA_SUFFIXES) or path.is_file():
        return
    if config.dataset.path.startswith("package:"):
        return
    neighbours = [str(p) for p in path.parent.glob("*") if p.suffix in DATA_SUFFIXES] if path.parent.is_dir() else []
    close = nearest(str(path), neighbours)
    what = "is a folder" if path.is_dir() else "no such file"
    yield Problem(
        "dataset.path", f"{what}: {path}", "", f"did you mean {close}?" if close else "give the path of your rows"
    )


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


def expert_parameters(config: Config) -> list[str]:
    """Full names of the expert tensors that LoRA can adapt, as transformers names them."""
    layers = range(config.model.architecture.num_hidden_layers)
    return [f"model.layers.{i}.mlp.experts.{part}" for i in layers for part in ("gate_up_proj", "down_proj")]


def place_of(stage: str, config: Config) -> str:
    """Where a stage's work happens: ``here``, or the platform of compute or of deployment."""
    if stage in ("deploy", "invoke", "teardown"):
        return config.deployment.platform
    if stage in ("environment", "publish", "train", "merge", "register", "evaluate"):
        return config.compute.platform
    return "here"


CHECKS: tuple[Check, ...] = (
    stage_exists,
    compute_fits_its_platform,
    deployment_fits_its_platform,
    reentrant_checkpointing_under_ddp,
    dropout_on_experts,
    target_parameters_exist,
    something_is_trained,
    flex_attention_needs_a_gpu,
    packed_weights_need_low_rank_experts,
    schedule_fits_its_arguments,
    max_steps_is_positive_or_minus_one,
    dataset_file_exists,
    invoke_has_one_request,
)
