"""Combinations of ``model``, ``lora`` and ``sft`` that fail in training, or train something else than they say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ftkit.config.schema import Config
from ftkit.errors import Problem, nearest
from ftkit.families import Family, family_of

EXPERTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


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


def recomputed_layers_exist(config: Config) -> Iterator[Problem]:
    given, layers = config.sft.gradient_checkpointing, config.model.architecture.num_hidden_layers
    if isinstance(given, int) and given > layers:
        yield Problem(
            "sft.gradient_checkpointing",
            f"{given} layers, and {config.model.name} has {layers}",
            "",
            "sft.gradient_checkpointing=true",
        )


def attention_can_be_kept(config: Config) -> Iterator[Problem]:
    sft = config.sft
    if not sft.keeps_attention:
        return
    if sft.gradient_checkpointing_kwargs.get("use_reentrant", True):
        why, cure = "true, and use_reentrant keeps nothing", "sft.gradient_checkpointing_kwargs={use_reentrant:false}"
    elif not config.model.joins_rows:
        shown = config.model.attn_implementation
        why, cure = f"true, and model.attn_implementation={shown} keeps nothing", "sft.keep_attention=auto"
    else:
        return
    yield Problem("sft.keep_attention", why, "", cure)


def flash_attention_4_has_what_it_needs(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.flash_attention != "fa4":
        return
    if not model.joins_rows:
        what, cure = f"fa4, which {model.attn_implementation} attention does not use", "model.flash_attention=auto"
    elif not config.sft.bf16:
        what, cure = "fa4, which computes in bfloat16, and sft.bf16 is false", "sft.bf16=true"
    else:
        return
    yield Problem("model.flash_attention", what, "", cure)


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
            short = [f"mlp.experts.{name}" for name in family_of(config.model.architecture.model_type).expert_tensors]
            close = nearest(target, [*short, *names])
            shown = f"did you mean lora.target_parameters=[{close}]?"
            hint = shown if close else "lora.target_parameters=auto"
            yield Problem(
                "lora.target_parameters", f"{target!r} names no expert tensor of {config.model.name}", "", hint
            )


def target_modules_exist(config: Config) -> Iterator[Problem]:
    """A text is a regular expression that has to match a whole name, as in PEFT; a list holds ends of names."""
    targets, key = config.lora and config.lora.target_modules, "lora.target_modules"
    family = family_of(config.model.architecture.model_type)
    if not targets or targets == "all-linear" or not family.linear:
        return
    layers = range(config.model.architecture.num_hidden_layers)
    names = [f"model.layers.{i}.{module}" for i in layers for module in family.linear]
    if isinstance(targets, str):
        if any(name.endswith("." + targets) for name in names):
            what = f"{targets!r} is a regular expression, and matches the whole of no name"
            yield Problem(key, what, "", f"{key}=[{targets}]")
            return
        try:
            matched = any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            matched = False
            yield Problem(key, f"{targets!r} is no regular expression: {error}", "", f"{key}=all-linear")
            return
        if not matched:
            what = f"{targets!r} names no linear module of {config.model.name} that can be adapted"
            yield Problem(key, what, "", _modules_like(targets, family))
        return
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            what = f"{target!r} names no linear module of {config.model.name} that can be adapted"
            yield Problem(key, what, "", _modules_like(target, family))


def _modules_like(target: str, family: Family) -> str:
    close = nearest(target, [module.rpartition(".")[2] for module in family.linear])
    if target in EXPERTS and family.expert_tensors:
        return f"lora=experts lora.target_modules=all-linear, which adapts the experts' {target}"
    return f"did you mean lora.target_modules=[{close}]?" if close else "lora.target_modules=all-linear"


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
        elif not config.dataset.holds_out:
            yield Problem(key, "needs held-out rows, and dataset.heldout is 0", "", "dataset.heldout=0.05")


def mxfp4_weights_need_low_rank_experts(config: Config) -> Iterator[Problem]:
    model = config.model
    if _stays_packed(config) and model.experts_implementation != "ftkit_lora":
        yield Problem(
            "model.weights",
            f"mxfp4, but {model.experts_implementation} experts compute with dense weights",
            "",
            "model.experts_implementation=ftkit_lora, or model.weights=dense",
        )


def mxfp4_weights_stay_whole_and_frozen(config: Config) -> Iterator[Problem]:
    if _stays_packed(config) and config.lora is None:
        yield Problem(
            "model.weights",
            "mxfp4, but lora=none trains the weights themselves, which takes them unpacked",
            "",
            "model.weights=dense, or lora=experts",
        )
    if _stays_packed(config) and config.sft.fsdp:
        yield Problem("model.weights", "mxfp4, which sft.fsdp does not shard", "", "model.weights=dense")


def _stays_packed(config: Config) -> bool:
    """Whether a model that comes in MXFP4 is to stay so; that another is none is said once, by its family's check."""
    return config.model.weights == "mxfp4" and family_of(config.model.architecture.model_type).mxfp4 is not None


def fp8_products_have_what_they_need(config: Config) -> Iterator[Problem]:
    model, lora, family = config.model, config.lora, family_of(config.model.architecture.model_type)
    products, attention, plain = model.products, family.attention[0], "model.products=dtype"
    if products == "dtype":
        return
    with_attention = products == "fp8_all" or not family.mxfp4
    for missing, what, cure in (
        (not family.fused, f"{products}, for which {family.title} has no fused layers", plain),
        (lora is None, f"{products}, but lora=none trains the weights themselves", plain),
        (config.sft.fsdp, f"{products}, but sharded weights (sft.fsdp) are multiplied in bfloat16", plain),
        (
            model.dtype != "bfloat16" or not config.sft.bf16,
            f"{products}, beside which all else has to be in bfloat16",
            plain,
        ),
        (
            config.compute.gib_per_gpu is None,
            f"{products}, which needs a CUDA GPU, and compute.gib_per_gpu says there is none",
            plain,
        ),
        (
            lora is not None and lora.lora_dropout,
            f"{products}, for which there are fused layers without lora.lora_dropout alone",
            "lora.lora_dropout=0.0",
        ),
        (
            products == "fp8" and not family.expert_tensors,
            f"fp8, which is of experts' products, and {family.title} has no experts",
            "model.products=fp8_all",
        ),
        (
            family.expert_tensors and model.experts_implementation != "ftkit_lora",
            f"{products}, but {model.experts_implementation} experts have none",
            plain,
        ),
        (
            with_attention and model.attn_implementation != attention,
            f"{products}, but layers with {model.attn_implementation} attention have none",
            f"model.attn_implementation={attention}",
        ),
    ):
        if missing:
            yield Problem("model.products", what, "", cure)
            return


def sharding_has_several_processes(config: Config) -> Iterator[Problem]:
    if config.sft.fsdp and config.processes == 1:
        yield Problem(
            "sft.fsdp",
            "true, but there is one process, and nothing to shard over",
            "",
            "sft.fsdp=false, or compute.gpus_per_node=2",
        )


def max_steps_is_positive_or_minus_one(config: Config) -> Iterator[Problem]:
    if config.sft.max_steps == 0 or config.sft.max_steps < -1:
        yield Problem(
            "sft.max_steps",
            f"{config.sft.max_steps} is neither -1 nor positive",
            "",
            "sft.max_steps=-1, which goes by sft.num_train_epochs",
        )


def model_computes_as_its_family_can(config: Config) -> Iterator[Problem]:
    model = config.model
    family = family_of(model.architecture.model_type)
    for key, value, allowed in (
        ("attn_implementation", model.attn_implementation, family.attention),
        ("experts_implementation", model.experts_implementation, family.experts),
    ):
        if value not in allowed:
            why = family.why_not if key.startswith("attn") and family.why_not else f"is none that {family.title} has"
            yield Problem(f"model.{key}", f"{value} {why}; there are {', '.join(allowed)}", "", f"model.{key}=auto")
    if model.weights == "mxfp4" and not family.mxfp4:
        yield Problem("model.weights", f"mxfp4, which no {family.title} comes in", "", "model.weights=dense")
    if config.merge.format == "mxfp4" and not family.mxfp4:
        yield Problem("merge.format", f"mxfp4, which no {family.title} comes in", "", "merge.format=bf16")
    if config.merge.gguf and not family.gguf:
        what = f"what llama.cpp makes of a {family.title} has not been held against the model"
        yield Problem("merge.gguf", what, "", "merge.gguf=null, then llama.cpp's converter on merged/ by hand")


def rows_fit_the_positions(config: Config) -> Iterator[Problem]:
    most = config.model.architecture.max_position_embeddings
    if config.sft.max_length > most:
        what = f"{config.sft.max_length:,}, and {config.model.name} has positions for {most:,} tokens"
        yield Problem("sft.max_length", what, "", f"sft.max_length={most}")


def expert_parameters(config: Config) -> list[str]:
    """Full names of the expert tensors that LoRA can adapt, as transformers names them."""
    layers = range(config.model.architecture.num_hidden_layers)
    tensors = family_of(config.model.architecture.model_type).expert_tensors
    return [f"model.layers.{i}.mlp.experts.{part}" for i in layers for part in tensors]


CHECKS = (
    reentrant_checkpointing_under_ddp,
    model_computes_as_its_family_can,
    rows_fit_the_positions,
    recomputed_layers_exist,
    attention_can_be_kept,
    flash_attention_4_has_what_it_needs,
    fp8_products_have_what_they_need,
    dropout_on_experts,
    target_parameters_exist,
    target_modules_exist,
    something_is_trained,
    flex_attention_needs_a_gpu,
    evaluation_has_what_it_needs,
    mxfp4_weights_need_low_rank_experts,
    mxfp4_weights_stay_whole_and_frozen,
    sharding_has_several_processes,
    max_steps_is_positive_or_minus_one,
)
