"""Training: from token rows to an adapter, or to a model that was trained whole. Needs the extra ``train``.

python -m ftkit experiment=tiny stage=train
"""

from __future__ import annotations

import gc
import json
import pickle
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from rich.text import Text
from transformers import PreTrainedTokenizerBase, TrainerState

from ftkit.config.schema import Config
from ftkit.console import console, printable
from ftkit.errors import Interrupted, StageError
from ftkit.files import explained, written_aside
from ftkit.library_logs import libraries_to
from ftkit.models.lora import Trained
from ftkit.processes import first_process, one_of_several
from ftkit.serving.endpoint import adapter_effect
from ftkit.training.adapter_effect import measure_effect
from ftkit.training.artifact import KINDS, Origin, folder_name
from ftkit.training.build import for_all_weights, hardware, set_up
from ftkit.training.checkpoints import is_complete, newest_complete, saving, step_of
from ftkit.training.collectives import together
from ftkit.training.dataset import DataCounts
from ftkit.training.fitting import lengths_for, next_smaller, settled_here
from ftkit.training.heldout import best_step, evaluations, stops_early
from ftkit.training.losses import PARTS, losses_of
from ftkit.training.memory_advice import OutOfMemory, out_of_memory
from ftkit.training.methods import Say, method_of
from ftkit.training.progress import Watch, history, loss_picture, of_the_method
from ftkit.training.tracking import trackers, tracking_callbacks
from ftkit.training.trainer import TrustworthyTrainer
from ftkit.training.weights import gather_weights, write_weights
from ftkit.translation import said


@dataclass(frozen=True)
class TrainResult:
    """What a finished training did.

    Attributes:
        global_step: optimiser steps done.
        max_steps: optimiser steps asked for; the same, unless it stopped early.
        first_loss: loss of the first line of metrics, in nats per loss token.
        last_loss: of the last line.
        eval_loss: on the held-out rows, of the adapter that was saved; None without evaluation.
        eval_thinking_loss: on their thinking alone; None also where they hold none.
        eval_answer_loss: on their answers alone.
        best_step: of the evaluation with the lowest loss.
        seconds: wall-clock seconds of training, interruptions not counted.
        tokens: trained on, padding not counted, on all processes.
        tokens_per_s: tokens ÷ seconds.
        peak_gib: highest memory of a process in GiB, on its GPU where it has one.
        counts: what became of the rows.
        trained: adapted modules and trained parameters.
        resumed_from: step of the checkpoint that this call went on from; None if it began anew.
        hardware: of its processes, ``2 × NVIDIA H100 80GB HBM3``.
        figures: of the method's own, as the last line of training and the last evaluation have them, by TRL's names.
        source_losses: held-out losses of each source of ``dataset.mix``, by the names of metrics.jsonl.
    """

    global_step: int
    max_steps: int
    first_loss: float
    last_loss: float
    eval_loss: float | None
    eval_thinking_loss: float | None
    eval_answer_loss: float | None
    best_step: int | None
    seconds: float
    tokens: int
    tokens_per_s: float
    peak_gib: float
    counts: DataCounts
    trained: Trained
    resumed_from: int | None
    hardware: str
    figures: dict[str, float]
    source_losses: dict[str, float]


def train(
    config: Config, *, tokens: Path, out: Path, checkpoints: Path, say: Say | None = None, label: str = ""
) -> TrainResult:
    """Train, or go on from the newest whole checkpoint.

    Runs as the only process, or as one of several that torchrun or Azure ML has started (RANK, WORLD_SIZE,
    LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment); only the first prints and writes.

    Args:
        config: the whole configuration.
        tokens: parquet file of ``prepare``.
        out: folder for ``adapter/``, ``metrics.jsonl``, ``tensorboard/``, ``loss.png`` and ``library.log``.
        checkpoints: folder for checkpoints of this configuration and this data, and of no other.
        say: prints one line; standard output if not given.
        label: begins the lines on standard output, where other runs print there as well.

    Raises:
        StageError: the model, the data or the disk is not as it should be, the loss is not a number, or training
        ended early.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last step was written.
    """
    first = first_process()
    say = (say or partial(_print, label)) if first else _silent
    tracked_by = trackers(config)
    config = for_all_weights(config, say)
    _make_folders(out, checkpoints)
    with libraries_to(out / "library.log" if first else None):
        lengths = lengths_for(config, tokens)
        settled = settled_here(config, lengths, checkpoints, say)
        try:
            return _train(settled, tokens, out, checkpoints, tracked_by, say, alone=not label)
        except OutOfMemory as error:
            smaller = next_smaller(config, settled, lengths, checkpoints)
            if smaller is None:
                raise
            if one_of_several():
                raise OutOfMemory(error.what, cure=f"the same command goes on with {smaller}") from error
            said = f"{error.what}; going on from the last checkpoint with {smaller}"
        say(said)
        gc.collect()  # what the failed step held: the error's frames are gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return _train(smaller.config, tokens, out, checkpoints, tracked_by, say, alone=not label)


def _train(
    config: Config, tokens: Path, out: Path, checkpoints: Path, tracked_by: set[str], say: Say, *, alone: bool
) -> TrainResult:  # fmt: skip
    """With a configuration that leaves nothing open."""
    args = method_of(config).arguments(config, checkpoints)
    try:
        trainer, counts, trained = set_up(config, args, tokens, say)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{config.model.name} does not fit into the GPU's memory, or something else lies there: "
            + str(error).split(". Of the allocated")[0],
            cure="stage=plan shows what it needs; nvidia-smi shows what else runs on the GPU",
        ) from error
    watch = Watch(out, say, tensorboard="tensorboard" in tracked_by, alone=alone)
    if first_process():
        trainer.add_callback(watch)
        for callback in tracking_callbacks(config, tracked_by, say):
            trainer.add_callback(callback)
    resumed = _resume_point(checkpoints, say, anew=config.force, patience=trainer.patience)
    try:
        max_steps = _to_the_end(config, trainer, counts, resumed, checkpoints, say)
    finally:
        watch.close()
    if count := trainer.writer.count:
        say(f"training waited {trainer.writer.waited_s:.1f} s for {count} checkpoint{'s' if count > 1 else ''}")
    kept = _save(config, trainer, tokens, out, checkpoints, max_steps, say)
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
        hardware=hardware(args),
        figures=of_the_method(lines[-1]) | of_the_method(evaluated.get(kept, {})),
        source_losses={k: v for k, v in losses_of(evaluated.get(kept, {})).items() if k not in PARTS},
    )


def _resume_point(checkpoints: Path, say: Say, *, anew: bool, patience: int | None) -> Path | None:
    """The newest whole checkpoint, the same for all processes; what was cut off is named and removed.

    With ``anew`` those of a training that came to its end are removed as well; one that was interrupted goes on, so
    that a job which is evicted does not begin again each time.
    """
    found: list[Any] = [None]
    if first_process():
        found[0], cut_off = newest_complete(checkpoints, read=True)
        for checkpoint in cut_off:
            what = "was changed since" if is_complete(checkpoint) else "was cut off while"
            say(f"{checkpoint} {what} it was written; removed")
            shutil.rmtree(checkpoint, ignore_errors=True)
        if anew and found[0] and _is_finished(found[0], patience):
            say(f"force=true trains again: the checkpoints of the training that came to its end at {found[0]} go")
            for checkpoint in sorted(checkpoints.glob("checkpoint-*"), key=step_of):  # the finished one last
                shutil.rmtree(checkpoint)
            found[0] = None
    return broadcast_object_list(found)[0]


def _is_finished(checkpoint: Path, patience: int | None) -> bool:
    """Whether the training that left a checkpoint came to its end with it."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"] or stops_early(state["log_history"], patience)


def _to_the_end(
    config: Config, trainer: TrustworthyTrainer, counts: DataCounts, resumed: Path | None, checkpoints: Path, say: Say
) -> int:
    """Train to the end; returns the number of steps, fewer than asked for where it stopped early."""
    done = 0
    if resumed:
        state = json.loads((resumed / "trainer_state.json").read_text(encoding="utf-8"))
        done, planned = state["global_step"], state["max_steps"]
        say(f"resuming from step {done} of {planned} ({resumed})")
        trainer.resume_counts(state["log_history"])
        if _is_finished(resumed, trainer.patience):
            _load_finished(trainer, resumed)
            return done
    try:
        with trainer.stop.listening(say is not _silent), trainer.writer.finishing(say):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            with trainer.writer.waiting():
                together(trainer.writer.wait)
    except KeyboardInterrupt as error:
        newest, _ = newest_complete(checkpoints)
        raise Interrupted(
            f"interrupted; the same command goes on from {f'step {step_of(newest)}' if newest else 'the start'}"
        ) from error
    except pickle.UnpicklingError as error:
        raise StageError(
            "the checkpoint holds what is no state of a training",
            where=str(resumed),
            cure=f"rm -r {shlex.quote(str(resumed))}; the same command goes on from the one before",
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


def _load_finished(trainer: TrustworthyTrainer, checkpoint: Path) -> None:
    """Everything was trained, and the run was cut off before it could save the adapter."""
    trainer.load_weights(checkpoint)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def _save(
    config: Config, trainer: TrustworthyTrainer, tokens: Path, out: Path, checkpoints: Path, max_steps: int, say: Say
) -> int:
    """Write what was trained, its effect and the picture, aside first. Returns the step that the weights are of."""
    step, best, kind = trainer.state.global_step, best_step(trainer.state.log_history), folder_name(config)
    if config.sft.load_best_model_at_end and best not in (None, step):
        say(f"the {kind} is that of step {best}, which had the lowest held-out loss")
        step, checkpoint = best, checkpoints / f"checkpoint-{best}"
        if not is_complete(checkpoint, read=first_process()):
            raise StageError("is gone or changed", where=str(checkpoint), cure="sft.load_best_model_at_end=false")
        trainer.load_weights(checkpoint)
    model: Any = trainer.model
    weights, tokenizer = gather_weights(model), cast(PreTrainedTokenizerBase, trainer.processing_class)
    effect = None
    if isinstance(model, PeftModel):
        with trainer.accelerator.autocast():
            effect = measure_effect(model, config, tokens, cast(int, tokenizer.pad_token_id))

    def write() -> None:
        with saving(out / kind), written_aside(out / kind) as aside:
            write_weights(model, aside, weights)
            tokenizer.save_pretrained(aside)
            Origin.of(config, global_step=trainer.state.global_step, max_steps=max_steps).write(aside)
        for other in KINDS:
            if other != kind:  # of an earlier training with other settings
                shutil.rmtree(out / other, ignore_errors=True)
        (out / adapter_effect.FILE).unlink(missing_ok=True)
        if effect:
            with written_aside(out / adapter_effect.FILE) as aside:
                effect.write(aside)
        with written_aside(out / "loss.png") as aside:
            log_history = trainer.state.log_history
            loss_picture(history(log_history), evaluations(log_history), config.run.name, aside)

    together(write if trainer.args.should_save else lambda: None)
    return step


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, folder) from error


def _print(label: str, line: str) -> None:
    text = f"{'':13}{printable(said(line))}"
    console().print(Text.assemble((f"{label}  " if label else "", "dim"), text), soft_wrap=True)


def _silent(line: str) -> None:
    """What the other processes say."""
