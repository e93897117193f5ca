"""Combinations of ``model``, ``lora`` and ``sft`` that are known to fail in training; all_checks runs them."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.config.overrides import nearest
from ftkit.config.schema import Config
from ftkit.errors import Problem


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
    if config.lora and config.lora.lora_dropout > 0 and config.lora.target_parameters:
        yield Problem(
            "lora.lora_dropout",
            f"{config.lora.lora_dropout}, but PEFT has no dropout on expert tensors",
            "",
            "lora.lora_dropout=0.0, or lora=attention",
        )


def target_parameters_exist(config: Config) -> Iterator[Problem]:
    names = expert_parameters(config)
    for target in (config.lora and config.lora.target_parameters) or []:
        if not any(name == target or name.endswith("." + target) for name in names):
            short = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", *names]
            close = nearest(target, short)
            hint = f"did you mean {close}?" if close else "for instance mlp.experts.gate_up_proj"
            yield Problem(
                "lora.target_parameters", f"{target!r} names no expert tensor of {config.model.name}", "", hint
            )


def something_is_trained(config: Config) -> Iterator[Problem]:
    cure = "lora.target_modules=all-linear"
    if config.lora and not config.lora.target_modules and not config.lora.target_parameters:
        yield Problem("lora", "neither target_modules nor target_parameters names anything", "", cure)


def flex_attention_needs_a_gpu(config: Config) -> Iterator[Problem]:
    if config.model.attn_implementation == "flex_attention" and config.compute.gib_per_gpu is None:
        yield Problem(
            "model.attn_implementation",
            "flex_attention needs a CUDA GPU, and compute.gib_per_gpu says there is none",
            "",
            "compute.gib_per_gpu=80 on a machine with GPUs, or model.attn_implementation=eager",
        )


def evaluation_has_what_it_needs(config: Config) -> Iterator[Problem]:
    sft = config.sft
    wanting = {
        "sft.early_stopping_patience": sft.early_stopping_patience is not None,
        "sft.load_best_model_at_end": sft.load_best_model_at_end,
    }
    for key in (key for key, is_set in wanting.items() if is_set):
        if sft.eval_strategy == "no":
            yield Problem(key, "needs evaluations, and sft.eval_strategy is no", "", "sft.eval_strategy=steps")
        elif config.dataset.heldout == 0:
            yield Problem(key, "needs held-out rows, and dataset.heldout is 0", "", "dataset.heldout=0.05")


def packed_weights_need_low_rank_experts(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.weights == "mxfp4" and model.experts_implementation != "ftkit_lora":
        yield Problem(
            "model.weights",
            f"mxfp4, but {model.experts_implementation} experts compute with dense weights",
            "",
            "model.experts_implementation=ftkit_lora, or model.weights=dense",
        )


def packed_weights_stay_whole_and_frozen(config: Config) -> Iterator[Problem]:
    if config.lora is None and config.model.weights == "mxfp4":
        yield Problem(
            "model.weights",
            "mxfp4, but lora=none trains the weights themselves, which takes them unpacked",
            "",
            "model.weights=dense, or lora=experts",
        )
    if config.sft.fsdp and config.model.weights == "mxfp4":
        yield Problem("model.weights", "mxfp4, which sft.fsdp does not shard", "", "model.weights=dense")


def sharding_has_several_processes(config: Config) -> Iterator[Problem]:
    if config.sft.fsdp and config.processes == 1:
        yield Problem(
            "sft.fsdp",
            "true, but there is one process, and nothing to shard over",
            "",
            "sft.fsdp=false, or compute.gpus_per_node=2",
        )


def schedule_fits_its_arguments(config: Config) -> Iterator[Problem]:
    kind = config.sft.lr_scheduler_type
    arguments = {name for name, value in config.sft.lr_scheduler_kwargs.items() if value is not None}
    known = {"min_lr_rate", "min_lr", "num_cycles"} if kind == "cosine_with_min_lr" else set()
    for name in sorted(arguments - known):
        yield Problem(
            "sft.lr_scheduler_kwargs",
            f"{kind} takes no {name!r}",
            "",
            f"sft.lr_scheduler_kwargs.{name}=null",
        )
    if kind == "cosine_with_min_lr" and not arguments & {"min_lr_rate", "min_lr"}:
        yield Problem(
            "sft.lr_scheduler_kwargs", f"{kind} needs min_lr_rate", "", "sft.lr_scheduler_kwargs.min_lr_rate=0.1"
        )


def max_steps_is_positive_or_minus_one(config: Config) -> Iterator[Problem]:
    if config.sft.max_steps == 0 or config.sft.max_steps < -1:
        yield Problem(
            "sft.max_steps", f"{config.sft.max_steps} is neither -1 nor positive", "", "-1 goes by sft.num_train_epochs"
        )


def expert_parameters(config: Config) -> list[str]:
    """Full names of the expert tensors that LoRA can adapt, as transformers names them."""
    layers = range(config.model.architecture.num_hidden_layers)
    return [f"model.layers.{i}.mlp.experts.{part}" for i in layers for part in ("gate_up_proj", "down_proj")]
