"""What a training needs, set up from the configuration: model with adapters, rows, held-out rows, trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import IntervalStrategy, PreTrainedModel, PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.processes import first_process, one_of_several
from ftkit.training import sharding
from ftkit.training.collator import Collator, JoiningCollator
from ftkit.training.dataset import DataCounts, training_rows
from ftkit.training.document_masks import isolate_documents
from ftkit.training.fast_path import speed_up, why_plain
from ftkit.training.guards import DocumentsApart, WeightsMove
from ftkit.training.heldout import HeldOut, Marks
from ftkit.training.lora import Trained, add_lora, train_all
from ftkit.training.model import hollow_base, load_base, load_tokenizer
from ftkit.training.sink_attention import NAME, flash_takes
from ftkit.training.trainer import Trainer, together

Say = Callable[[str], None]
OURS = {
    *("max_length", "packing", "verify_packing", "save_total_limit", "save_minutes"),
    *("early_stopping_patience", "load_best_model_at_end"),
}
"""Keys of ``sft`` that ftkit acts on itself: TRL would cut rows, pack without masks, count checkpoints that were
cut off, and forget on resuming how long it has been patient."""


def sft_config(config: Config, checkpoints: Path) -> SFTConfig:
    """TRL's arguments: every key of ``config.sft`` under its own name, but for ``OURS``."""
    cpu = not torch.cuda.is_available()
    given = {key: value for key, value in config.sft.model_dump().items() if key not in OURS}
    shape = given["lr_scheduler_kwargs"].items()
    given["lr_scheduler_kwargs"] = {name: value for name, value in shape if value is not None}
    if not given["gradient_checkpointing"]:
        given["gradient_checkpointing_kwargs"] = None
    made = SFTConfig(
        **given,
        output_dir=str(checkpoints),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        save_total_limit=None,
        save_only_model=False,
        ignore_data_skip=False,
        logging_nan_inf_filter=False,
        average_tokens_across_devices=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=cpu,
        ddp_backend=("gloo" if cpu else "nccl") if one_of_several() else None,
        fsdp_config=dict(sharding.CONFIG) if config.sft.fsdp else None,
        dataloader_pin_memory=not cpu,
    )
    if made.fsdp_plugin_args:
        made.fsdp_plugin_args |= sharding.precision(config.sft.bf16)
    return made


def set_up(config: Config, args: SFTConfig, tokens: Path, say: Say) -> tuple[Trainer, DataCounts, Trained]:
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
    plain = why_plain(config, device)
    say(_what_computes(config, args, plain))
    tokenizer = load_tokenizer(config.model)
    rows, counts = training_rows(tokens, config, vocab_size=config.model.architecture.vocab_size)
    say(_what_is_read(counts, config, args))
    model, trained = _model(config, device, fused=plain is None)
    say(f"training {trained}")
    assert isinstance(tokenizer.pad_token_id, int)
    collate = _collator(config, tokenizer.pad_token_id)
    heldout = _held_out(config, args, tokens, say)
    size = args.per_device_train_batch_size
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=heldout,
        data_collator=collate,
        processing_class=tokenizer,
        save_total_limit=config.sft.save_total_limit,
        save_minutes=config.sft.save_minutes,
        heldout=None if heldout is None else HeldOut(heldout, collate, size, Marks.of(tokenizer)),
        patience=config.sft.early_stopping_patience,
    )
    if config.sft.fsdp and not trainer.is_fsdp_enabled:
        raise StageError("sft.fsdp is true, and accelerate does not shard these processes", cure="sft.fsdp=false")
    trainer.remove_callback(PrinterCallback)
    if config.sft.packing and config.sft.verify_packing:
        trainer.add_callback(DocumentsApart(rows, collate, lambda: trainer.accelerator.autocast(), say))
    trainer.add_callback(WeightsMove())
    return trainer, counts, trained


def _model(config: Config, device: torch.device, *, fused: bool) -> tuple[torch.nn.Module, Trained]:
    """The model with what is trained in it, its documents apart and its layers replaced by faster ones."""
    base = _sharded_base(config) if config.sft.fsdp else _base(config, device)
    set_seed(config.sft.seed)
    model, trained = add_lora(base, config.lora) if config.lora else (base, train_all(base))
    sharding.leave_frozen_alone(model)
    isolate_documents(model)
    speed_up(model, config, fused=fused)
    return model, trained


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


def _held_out(config: Config, args: SFTConfig, tokens: Path, say: Say) -> Dataset | None:
    """The held-out rows, packed as the others; None, with ``args`` changed, where there are none or none are wanted."""
    sft = config.sft
    if sft.eval_strategy == "no":
        return None
    try:
        return training_rows(tokens, config, vocab_size=config.model.architecture.vocab_size, split="heldout")[0]
    except StageError as error:
        if sft.early_stopping_patience or sft.load_best_model_at_end:
            raise
        say(f"no evaluation: {error.what}")
        args.eval_strategy = IntervalStrategy.NO
        return None


def _collator(config: Config, pad_token_id: int) -> Collator | JoiningCollator:
    attention, sft = config.model.attn_implementation, config.sft
    if attention == "ftkit_sinks":
        return JoiningCollator(pad_token_id)
    # flex_attention is compiled anew for another length.
    pad_to = sft.max_length if attention == "flex_attention" and sft.packing else None
    return Collator(pad_token_id, sft.packing, pad_to)


def _what_computes(config: Config, args: SFTConfig, plain: str | None) -> str:
    """Attention, experts, precision and device in use, and why."""
    model, where, seen = config.model, hardware(args), torch.cuda.device_count()
    if args.device.type != "cuda":
        where += " (no CUDA GPU)"
    elif args.world_size == 1 and seen > 1:
        where += f" (one of {seen}; compute.gpus_per_node={seen} takes all)"
    compute = "products in bfloat16" if config.sft.bf16 else "no mixed precision"
    weights = model.dtype if model.weights == "dense" else f"{model.dtype}, experts in {model.weights}"
    line = (
        f"{model.attn_implementation} attention, {model.experts_implementation} experts (as model.* says), "
        f"weights {weights}, {compute}, on {where}"
    )
    if "ftkit_" in line:
        flash = config.sft.bf16 and flash_takes(args.device, model.architecture.head_dim)
        alone = "only attention is fused" if flash and model.attn_implementation == NAME else "not fused"
        line += f"; {alone}: {plain}" if plain else "; fused, the first step compiles the kernels"
    return line


def hardware(args: SFTConfig) -> str:
    """``2 × NVIDIA H100 80GB HBM3``, ``CPU, 2 threads``."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else cpu
    return f"{args.world_size} × {device}" if args.world_size > 1 else device


def _what_is_read(counts: DataCounts, config: Config, args: SFTConfig) -> str:
    text = f"{counts.rows:,} rows, {counts.tokens:,} tokens, {counts.loss_tokens:,} with loss"
    if counts.overlength:
        text += f"; {counts.overlength:,} rows left out: longer than sft.max_length={config.sft.max_length}"
    if counts.truncated:
        text += f"; {counts.truncated:,} rows cut at the end of their thinking"
    if counts.fill is not None:
        text += f"; packed into {counts.trained:,} rows, {counts.fill:.1%} full"
    if args.world_size > 1 and (short := -counts.trained % (args.world_size * args.per_device_train_batch_size)):
        text += f"; {short} of them come twice in an epoch, so that every process has as many"
    return text
