"""Combinations of ``method`` with the rows, ``lora`` and ``sft`` that cannot be trained, or train something else."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.config.checkpoint import holds_mxfp4
from ftkit.config.methods import REWARDS, DpoMethod, GrpoMethod
from ftkit.config.schema import Config
from ftkit.errors import Problem, nearest
from ftkit.families import family_of

BY_DIFFERENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""DPO's losses that take other divergences than reverse_kl."""


def method_has_its_rows(config: Config) -> Iterator[Problem]:
    if config.job.records or (config.stages and not {"train", "plan"} & {*config.stages}):
        return
    pairs = any(source.columns.chosen is not None for source in config.dataset.sources.values())
    if config.method.name == "dpo" and not pairs:
        what = f"{config.dataset.name} has no columns chosen and rejected, which method=dpo compares"
        path = config.dataset.path or "<your pairs>"
        yield Problem("dataset.columns", what, "", f"dataset=preference dataset.path={path}")
    elif config.method.name != "dpo" and pairs:
        what = f"{config.dataset.name} has two answers to a question, and method={config.method.name} takes one"
        cure = "method=dpo, or dataset=prompt-completion dataset.columns.answer=chosen"
        yield Problem("method", what, "", cure)


def answers_are_trained_as_they_can_be(config: Config) -> Iterator[Problem]:
    name, sft = config.method.name, config.sft
    if name == "sft":
        return
    if sft.packing:
        yield Problem("sft.packing", f"true, and method={name} packs no rows", "", "sft.packing=false")
    if config.lora is None:
        what = f"none, and method={name} finds the model that it starts from by switching the adapter off"
        yield Problem("lora", what, "", "lora=experts")
    if sft.fsdp:
        yield Problem("sft.fsdp", f"true, which method={name} does not take", "", "sft.fsdp=false")
    if sft.router_aux_loss_coef:
        what = f"{sft.router_aux_loss_coef:g}, and method={name} adds no balance loss"
        yield Problem("sft.router_aux_loss_coef", what, "", "sft.router_aux_loss_coef=0.0")
    if config.dataset.overlength == "truncate-thinking":
        what = f"truncate-thinking, and method={name} takes answers whole"
        yield Problem("dataset.overlength", what, "", "dataset.overlength=drop")
    if config.model.attn_implementation == "flex_attention":
        what = f"flex_attention, which method={name} does not take"
        yield Problem("model.attn_implementation", what, "", "model.attn_implementation=auto")


def rollouts_can_be_made(config: Config) -> Iterator[Problem]:
    method, sft = config.method, config.sft
    if not isinstance(method, GrpoMethod):
        return
    if config.rows_per_step % method.num_generations:
        what = f"{method.num_generations}, and the {config.rows_per_step} rows of a step are no multiple of it"
        cure = f"sft.gradient_accumulation_steps={method.num_generations}"
        yield Problem("method.num_generations", what, "", cure)
    if method.max_completion_length >= sft.max_length:
        what = f"{method.max_completion_length}, which leaves a question no room in sft.max_length={sft.max_length}"
        yield Problem("method.max_completion_length", what, "", f"method.max_completion_length={sft.max_length // 2}")
    if not method.rewards or not any(method.rewards.values()):
        yield Problem("method.rewards", "names no reward with a weight", "", "+method.rewards.right=1.0")
    for name in method.rewards:
        if name not in REWARDS and "." not in name:
            close = nearest(name, REWARDS)
            hint = f"did you mean {close}? " if close else f"there are {', '.join(REWARDS)}; "
            what = f"{name!r} is no reward"
            yield Problem("method.rewards", what, "", f"{hint}a function of your own is named module.function")
        if "." in name and config.compute.elsewhere:
            what = f"{name}, and a job on Azure ML does not take a module of your own along"
            yield Problem("method.rewards", what, "", f"leave it out, or compute=local; there are {', '.join(REWARDS)}")
    if "language" in method.rewards and config.dataset.reasoning_language != "Japanese":
        what = f"language, and it knows Japanese, not {config.dataset.reasoning_language}"
        yield Problem("method.rewards", what, "", "~method.rewards.language")
    if config.model.attn_implementation.startswith("ftkit_") and not method.use_vllm:
        what = f"{config.model.attn_implementation}, by which transformers writes no answers"
        family = family_of(config.model.architecture.model_type)
        stock = next(kind for kind in family.attention if not kind.startswith("ftkit_") and kind != "flex_attention")
        yield Problem("model.attn_implementation", what, "", f"model.attn_implementation={stock}")


def vllm_takes_new_weights(config: Config) -> Iterator[Problem]:
    if isinstance(config.method, GrpoMethod) and config.method.use_vllm and holds_mxfp4(config.model):
        yield experts_in_mxfp4(config)


def experts_in_mxfp4(config: Config) -> Problem:
    """TRL hands the experts over dense, and a vLLM that has loaded them in MXFP4 has no place for them."""
    what = f"true, and {config.model.pretrained_model_name_or_path} has its experts in MXFP4: vLLM takes new ones dense"
    cure = "method.use_vllm=false, or method.start=<a run merged with merge.format=bf16>"
    return Problem("method.use_vllm", what, "", cure)


def losses_fit_together(config: Config) -> Iterator[Problem]:
    method = config.method
    if not isinstance(method, DpoMethod):
        return
    losses, weights = method.losses, method.loss_weights
    if weights is not None and len(weights) != len(losses):
        what = f"{len(weights)} weights for {len(losses)} {'loss' if len(losses) == 1 else 'losses'}"
        yield Problem("method.loss_weights", what, "", f"method.loss_weights=[{','.join(['1.0'] * len(losses))}]")
    if "exo_pair" in losses and not method.label_smoothing:
        what = "0, and the loss exo_pair takes a share above it"
        yield Problem("method.label_smoothing", what, "", "method.label_smoothing=1e-3")
    if method.f_divergence_type != "reverse_kl" and (alone := [loss for loss in losses if loss not in BY_DIFFERENCE]):
        what = f"{method.f_divergence_type}, and the loss {alone[0]} has reverse_kl alone"
        yield Problem("method.f_divergence_type", what, "", "method.f_divergence_type=reverse_kl")
    if method.use_weighting and (sorting := [loss for loss in losses if loss.startswith("aot")]):
        what = f"true, and the loss {sorting[0]} takes pairs apart"
        yield Problem("method.use_weighting", what, "", "method.use_weighting=false")


CHECKS = (
    method_has_its_rows,
    answers_are_trained_as_they_can_be,
    rollouts_can_be_made,
    vllm_takes_new_weights,
    losses_fit_together,
)
