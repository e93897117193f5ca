"""What a training needs, set up from the configuration: model with adapters, rows, held-out rows, trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from transformers import IntervalStrategy, PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from ftkit.config.schedules import BY_EVALUATION, planned_steps, why_too_short
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.families import Family, family_of
from ftkit.models import flash
from ftkit.models.loading import hollow_base, load_base, load_tokenizer
from ftkit.models.lora import Trained, add_lora, train_all
from ftkit.processes import first_process
from ftkit.training import sharding
from ftkit.training.collectives import together
from ftkit.training.dataset import DataCounts
from ftkit.training.guards import WeightsMove
from ftkit.training.methods import Say, method_of
from ftkit.training.recompute import RecomputeSome
from ftkit.training.trainer import TrustworthyTrainer


def set_up(
    config: Config, args: TrainingArguments, tokens: Path, say: Say
) -> tuple[TrustworthyTrainer, DataCounts, Trained]:
    """Start the process group, load and adapt the model, and make a trainer that is ready to train.

    Raises:
        StageError: the model or the rows are not as they should be, or the device cannot do what is asked.
    """
    device = args.device  # starts the process group
    args._n_gpu = min(args.n_gpu, 1)  # a process has one GPU, whatever others it sees
    if config.sft.fsdp:
        sharding.shard_on_cpus()
    if config.model.attn_implementation == "flex_attention" and device.type != "cuda":
        raise StageError("flex_attention needs a CUDA GPU, and there is none", cure="model.attn_implementation=eager")
    plain = _family(config).training.why_plain(config, device)
    if plain and config.model.products != "dtype":
        raise StageError(f"there are no products in FP8 here: {plain}", cure="model.products=dtype")
    by_flash = _attends_by_flash(config, device)
    remark = flash.use(config.model, device, _family(config).window) if by_flash else None
    say(_what_computes(config, args, plain, by_flash))
    if remark:
        say(remark)
    tokenizer = load_tokenizer(config.model)
    method = method_of(config)
    rows, counts = method.rows(tokens, config, vocab_size=config.model.architecture.vocab_size)
    say(_what_is_read(counts, config, args))
    if why := why_too_short(config, planned_steps(config, counts.trained)):
        raise StageError(why, where="sft.warmup_steps", cure="sft.warmup_steps=0.03, or more rows or epochs")
    model, trained = _model(config, device)
    say(f"training {trained}")
    trainer = method.trainer(config, args, model, tokenizer, rows, _held_out(config, args, tokens, say), say)
    # TRL may add and copy adapters before
    remark = _family(config).training.prepare(model, config, fused=plain is None)
    if remark:
        say(remark)
    if config.sft.fsdp and not trainer.is_fsdp_enabled:
        raise StageError("sft.fsdp is true, and accelerate does not shard these processes", cure="sft.fsdp=false")
    trainer.remove_callback(PrinterCallback)
    if config.sft.gradient_checkpointing:
        recomputed = config.sft.recomputed_layers(config.model.architecture.num_hidden_layers)
        trainer.add_callback(RecomputeSome(recomputed, keep_attention=config.sft.keeps_attention))
    trainer.add_callback(WeightsMove(patient=config.method.name == "grpo"))
    return trainer, counts, trained


def _model(config: Config, device: torch.device) -> tuple[torch.nn.Module, Trained]:
    """The model with what is trained in it."""
    base = _sharded_base(config) if config.sft.fsdp else _base(config, device)
    set_seed(config.sft.seed)
    model, trained = add_lora(base, config.lora) if config.lora else (base, train_all(base, _family(config)))
    sharding.leave_frozen_alone(model)
    return model, trained


def _family(config: Config) -> Family:
    return family_of(config.model.architecture.model_type)


def _dtype(config: Config) -> str:
    """Of the weights: all that is trained is in float32."""
    return config.model.dtype if config.lora else "float32"


def _base(config: Config, device: torch.device | None) -> PreTrainedModel:
    return load_base(config.model, dtype=_dtype(config), device=device, training=True)


def _sharded_base(config: Config) -> PreTrainedModel:
    """The base model on the first process's CPU, and without weights on the others, which get their shares later."""
    found: list[PreTrainedModel] = []

    def load() -> None:
        found.append(_base(config, None) if first_process() else hollow_base(config.model, _dtype(config)))

    together(load)
    return found[0]


def _held_out(config: Config, args: TrainingArguments, tokens: Path, say: Say) -> Dataset | None:
    """The held-out rows, packed as the others; None, with ``args`` changed, where there are none or none are wanted."""
    sft = config.sft
    if sft.eval_strategy == "no":
        return None
    try:
        return method_of(config).rows(tokens, config, vocab_size=config.model.architecture.vocab_size, split="heldout")[
            0
        ]
    except StageError as error:
        if sft.early_stopping_patience or sft.load_best_model_at_end or sft.lr_scheduler_type in BY_EVALUATION:
            raise
        say(f"no evaluation: {error.what}")
        args.eval_strategy = IntervalStrategy.NO
        return None


def _attends_by_flash(config: Config, device: torch.device) -> bool:
    """Whether attention is one of ftkit's, on a device where flash attention computes it.

    Raises:
        StageError: it is not, and FlashAttention 4 is asked for.
    """
    model = config.model
    runs = _family(config).training.flash_runs(device, model.architecture.head_dim)
    if model.flash_attention == "fa4" and not runs:
        raise StageError("FlashAttention 4 takes a Hopper GPU", where="model.flash_attention", cure=flash.CURE)
    return model.joins_rows and config.sft.bf16 and runs


def _what_computes(config: Config, args: TrainingArguments, plain: str | None, by_flash: bool) -> str:
    """Attention, experts, precision and device in use, and why."""
    model, where, seen = config.model, hardware(args), torch.cuda.device_count()
    if args.device.type != "cuda":
        where = f"{where} (no CUDA GPU)"
    elif args.world_size == 1 and seen > 1:
        where += f" (one of {seen}; compute.gpus_per_node={seen} takes all)"
    compute = "products in bfloat16" if config.sft.bf16 else "no mixed precision"
    weights = model.dtype if model.weights != "mxfp4" else f"{model.dtype}, experts in {model.weights}"
    by = f" by {flash.in_use().name}" if by_flash else ""
    line = (
        f"{model.attn_implementation} attention{by}, {model.experts_implementation} experts (as model.* says), "
        f"weights {weights}, {compute}, on {where}"
    )
    if "ftkit_" in line:
        alone = "only attention is fused" if by_flash else "not fused"
        line += f"; {alone}: {plain}" if plain else "; fused, the first step compiles the kernels"
    return line


def for_all_weights(config: Config, say: Say) -> Config:
    """The same; where all weights are trained, with experts that have gradients for their own."""
    if config.lora or config.model.experts_implementation != "ftkit_lora":
        return config
    say("grouped_mm experts in place of ftkit_lora, which trains adapters alone")
    model = config.model.model_copy(update={"experts_implementation": "grouped_mm"})
    return config.model_copy(update={"model": model})


def hardware(args: TrainingArguments) -> str:
    """``2 × NVIDIA H100 80GB HBM3``, ``CPU, 2 threads``."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else cpu
    return f"{args.world_size} × {device}" if args.world_size > 1 else device


def _what_is_read(counts: DataCounts, config: Config, args: TrainingArguments) -> str:
    text = f"{counts.rows:,} rows, {counts.tokens:,} tokens" + (
        f", {counts.loss_tokens:,} with loss" if counts.loss_tokens else " in their prompts, answers of the model's own"
    )
    if counts.overlength:
        text += f"; {counts.overlength:,} rows left out: longer than sft.max_length={config.sft.max_length}"
    if counts.truncated:
        text += f"; {counts.truncated:,} rows cut at the end of their thinking"
    if counts.fill is not None:
        text += f"; packed into {counts.trained:,} rows, {counts.fill:.1%} full"
    if args.world_size > 1 and (short := -counts.trained % (args.world_size * args.per_device_train_batch_size)):
        text += f"; {short} of them come twice in an epoch, so that every process has as many"
    return text
