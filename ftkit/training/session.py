"""One training session: set up, resume, train, save the adapter. ``ftkit.training.train`` is the way in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.text import Text
from transformers import IntervalStrategy, PreTrainedTokenizerBase, PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from ftkit.config.schema import Config
from ftkit.console import console
from ftkit.errors import Interrupted, StageError
from ftkit.files import explained, written_aside
from ftkit.processes import first_process, one_of_several
from ftkit.quiet import libraries_to
from ftkit.training import sharding
from ftkit.training.checkpoints import newest_complete, saving, step_of
from ftkit.training.collator import Collator, JoiningCollator
from ftkit.training.dataset import DataCounts, training_rows
from ftkit.training.document_masks import isolate_documents
from ftkit.training.fast_path import for_all_weights, speed_up, why_plain
from ftkit.training.guards import WeightsMove, check_packing
from ftkit.training.heldout import PARTS, HeldOut, Marks, best_step, evaluations, stops_early
from ftkit.training.lora import Trained, add_lora, train_all
from ftkit.training.model import load_base, load_tokenizer
from ftkit.training.savings import out_of_memory
from ftkit.training.tracking import trackers, tracking_callbacks
from ftkit.training.train import TrainResult
from ftkit.training.trained import Origin, folder_name
from ftkit.training.trainer import Trainer, together
from ftkit.training.watch import Watch, history, loss_picture
from ftkit.training.weights import gather_weights, write_weights

Say = Callable[[str], None]
OURS = {
    *("max_length", "packing", "verify_packing", "save_total_limit", "save_minutes"),
    *("early_stopping_patience", "load_best_model_at_end"),
}
"""Keys of ``sft`` that ftkit acts on itself: TRL would cut rows, pack without masks, count checkpoints that were
cut off, and forget on resuming how long it has been patient."""


def run(config: Config, *, tokens: Path, out: Path, checkpoints: Path, say: Say | None = None) -> TrainResult:
    """See ``ftkit.training.train.train``."""
    first = first_process()
    say = (say or _print) if first else _silent
    tracked_by = trackers(config)
    config = for_all_weights(config, say)
    _make_folders(out, checkpoints)
    with libraries_to(out / "library.log" if first else None):
        args = sft_config(config, checkpoints)
        try:
            trainer, counts, trained = _set_up(config, args, tokens, say)
        except torch.OutOfMemoryError as error:
            raise StageError(
                f"{config.model.name} does not fit into the GPU's memory, or something else lies there: "
                + str(error).split(". Of the allocated")[0],
                cure="stage=plan shows what it needs; nvidia-smi shows what else runs on the GPU",
            ) from error
        watch = Watch(out, say, tensorboard="tensorboard" in tracked_by)
        if first:
            trainer.add_callback(watch)
            for callback in tracking_callbacks(config, tracked_by, say):
                trainer.add_callback(callback)
        resumed = _resume_point(checkpoints, say)
        try:
            max_steps = _train(config, trainer, counts, resumed, checkpoints, say)
        finally:
            watch.close()
        kept = _save(config, trainer, out, checkpoints, max_steps, say)
        trainer.accelerator.end_training()  # a process group that is left open can abort a process as it ends
    lines = history(trainer.state.log_history)
    evaluated = {log["step"]: log for log in evaluations(trainer.state.log_history)}
    return TrainResult(
        global_step=trainer.state.global_step,
        max_steps=max_steps,
        first_loss=lines[0]["loss"],
        last_loss=lines[-1]["loss"],
        **{name: evaluated.get(kept, {}).get(name) for name in PARTS},
        best_step=best_step(trainer.state.log_history),
        seconds=lines[-1]["seconds"],
        tokens=lines[-1]["tokens"],
        tokens_per_s=lines[-1]["tokens"] / lines[-1]["seconds"],
        peak_gib=max(line["peak_gib"] for line in lines),
        counts=counts,
        trained=trained,
        resumed_from=step_of(resumed) if resumed else None,
        hardware=_hardware(args),
    )


def sft_config(config: Config, checkpoints: Path) -> SFTConfig:
    """TRL's arguments: every key of ``config.sft`` under its own name, but for ``OURS``."""
    cpu = not torch.cuda.is_available()
    given = {key: value for key, value in config.sft.model_dump().items() if key not in OURS}
    shape = given["lr_scheduler_kwargs"].items()
    given["lr_scheduler_kwargs"] = {name: value for name, value in shape if value is not None}
    if not given["gradient_checkpointing"]:
        given["gradient_checkpointing_kwargs"] = None
    return SFTConfig(
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


def _set_up(config: Config, args: SFTConfig, tokens: Path, say: Say) -> tuple[Trainer, DataCounts, Trained]:
    device = args.device  # starts the process group
    if config.sft.fsdp:
        sharding.shard_on_cpus()
    if config.model.attn_implementation == "flex_attention" and device.type != "cuda":
        raise StageError("flex_attention needs a CUDA GPU, and there is none", cure="model.attn_implementation=eager")
    plain = why_plain(config, device)
    say(_what_computes(config, args, plain))
    tokenizer = load_tokenizer(config.model)
    rows, counts = training_rows(tokens, config, vocab_size=config.model.architecture.vocab_size)
    say(_what_is_read(counts, config, args))
    base = load_base(
        config.model,
        dtype=None if config.lora else "float32",
        device=torch.device("cpu") if config.sft.fsdp else device,  # sharding takes it to the devices, layer by layer
        router_aux_loss_coef=config.sft.router_aux_loss_coef,
        training=True,
    )
    set_seed(config.sft.seed)
    model, trained = add_lora(base, config.lora) if config.lora else (base, train_all(base))
    sharding.leave_frozen_alone(model)
    isolate_documents(model)
    speed_up(model, config, fused=plain is None)
    say(f"training {trained}")
    assert isinstance(tokenizer.pad_token_id, int)
    collate = _collator(config, tokenizer.pad_token_id)
    heldout = _held_out(config, args, tokens, say)
    size = args.per_device_train_batch_size
    evaluated = None if heldout is None else HeldOut(heldout, collate, size, Marks.of(tokenizer))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=heldout,
        data_collator=collate,
        processing_class=tokenizer,
        save_total_limit=config.sft.save_total_limit,
        save_minutes=config.sft.save_minutes,
        heldout=evaluated,
        patience=config.sft.early_stopping_patience,
    )
    if config.sft.fsdp and not trainer.is_fsdp_enabled:
        raise StageError("sft.fsdp is true, and accelerate does not shard these processes", cure="sft.fsdp=false")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(WeightsMove())
    if config.sft.packing and config.sft.verify_packing:
        with trainer.accelerator.autocast():
            _say_packing(check_packing(model, rows, collate), say)
    return trainer, counts, trained


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


def _say_packing(compared: tuple[int, float] | None, say: Say) -> None:
    if compared:
        documents, share = compared
        say(f"{documents} packed documents give the logits of each alone, to {share:.1e} of their spread")


def _collator(config: Config, pad_token_id: int) -> Collator | JoiningCollator:
    attention, sft = config.model.attn_implementation, config.sft
    if attention == "ftkit_sinks":
        return JoiningCollator(pad_token_id)
    # flex_attention is compiled anew for another length.
    pad_to = sft.max_length if attention == "flex_attention" and sft.packing else None
    return Collator(pad_token_id, sft.packing, pad_to)


def _resume_point(checkpoints: Path, say: Say) -> Path | None:
    """The newest whole checkpoint, the same for all processes; what was cut off is named and removed."""
    found: list[Any] = [None]
    if first_process():
        found[0], cut_off = newest_complete(checkpoints)
        for checkpoint in cut_off:
            say(f"{checkpoint} was cut off while it was written; removed")
            shutil.rmtree(checkpoint, ignore_errors=True)
    return broadcast_object_list(found)[0]


def _train(
    config: Config, trainer: Trainer, counts: DataCounts, resumed: Path | None, checkpoints: Path, say: Say
) -> int:
    """Train to the end; returns the number of steps, fewer than asked for where it stopped early."""
    done = 0
    if resumed:
        state = json.loads((resumed / "trainer_state.json").read_text(encoding="utf-8"))
        done, planned = state["global_step"], state["max_steps"]
        say(f"resuming from step {done} of {planned} ({resumed})")
        trainer.resume_counts(state["log_history"])
        if done >= planned or stops_early(state["log_history"], trainer.patience):
            _load_finished(trainer, resumed)
            return done
    try:
        with trainer.stop.listening(say is not _silent):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    except KeyboardInterrupt as error:
        newest, _ = newest_complete(checkpoints)
        raise Interrupted(
            f"interrupted; the same command goes on from {f'step {step_of(newest)}' if newest else 'the start'}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(config, trainer.state.global_step + 1, counts.longest) from error
    step, max_steps = trainer.state.global_step, trainer.state.max_steps
    if step < max_steps and trainer.stop.agreed:
        stopped = Interrupted(f"stopped after step {step} of {max_steps}; the same command goes on from there")
        stopped.exit_status = 128 + trainer.stop.agreed
        raise stopped
    if step < max_steps and stops_early(trainer.state.log_history, trainer.patience):
        say(f"no lower held-out loss in {trainer.patience} evaluations: ended at step {step} of {max_steps}")
        return step
    if step < max_steps:
        raise StageError(
            f"training ended at step {step} of {max_steps}", where=str(checkpoints), cure="run it again to go on"
        )
    return max_steps


def _load_finished(trainer: Trainer, checkpoint: Path) -> None:
    """Everything was trained, and the run was cut off before it could save the adapter."""
    from transformers import TrainerState

    trainer.load_weights(checkpoint)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def _save(config: Config, trainer: Trainer, out: Path, checkpoints: Path, max_steps: int, say: Say) -> int:
    """Write what was trained and the picture, aside first. Returns the step that the weights are of."""
    step, best, kind = trainer.state.global_step, best_step(trainer.state.log_history), folder_name(config)
    if config.sft.load_best_model_at_end and best not in (None, step):
        say(f"the {kind} is that of step {best}, which had the lowest held-out loss")
        step = best
        trainer.load_weights(checkpoints / f"checkpoint-{best}")
    model: Any = trainer.model
    weights = gather_weights(model)

    def write() -> None:
        assert isinstance(trainer.processing_class, PreTrainedTokenizerBase)
        with saving(out / kind), written_aside(out / kind) as aside:
            write_weights(model, aside, weights)
            trainer.processing_class.save_pretrained(aside)
            Origin.of(config, global_step=trainer.state.global_step, max_steps=max_steps).write(aside)
        with written_aside(out / "loss.png") as aside:
            log_history = trainer.state.log_history
            loss_picture(history(log_history), evaluations(log_history), config.run.name, aside)

    together(write if trainer.args.should_save else lambda: None)
    return step


def _what_computes(config: Config, args: SFTConfig, plain: str | None) -> str:
    """Attention, experts, precision and device in use, and why."""
    model, where = config.model, _hardware(args)
    if args.device.type != "cuda":
        where += " (no CUDA GPU)"
    compute = "products in bfloat16" if config.sft.bf16 else "no mixed precision"
    weights = model.dtype if model.weights == "dense" else f"{model.dtype}, experts in {model.weights}"
    line = (
        f"{model.attn_implementation} attention, {model.experts_implementation} experts (as model.* says), "
        f"weights {weights}, {compute}, on {where}"
    )
    if "ftkit_" in line:
        line += f"; not fused: {plain}" if plain else "; fused, the first step compiles the kernels"
    return line


def _hardware(args: SFTConfig) -> str:
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


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, folder) from error


def _print(line: str) -> None:
    console().print(Text(f"{'':13}{line}"), soft_wrap=True)


def _silent(line: str) -> None:
    """What the other processes say."""
