"""What a run that can be trusted needs of any trainer: whole checkpoints, honest counts, and a stop that saves."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import IntervalStrategy

from ftkit.config.groups import Sft
from ftkit.errors import StageError
from ftkit.training.checkpoint_writer import CheckpointWriter
from ftkit.training.checkpoints import keep_newest, mark_complete, removed_on_failure, saving
from ftkit.training.collectives import gathered, in_one, together
from ftkit.training.heldout import best_step, stops_early
from ftkit.training.schedule import rate_scheduler
from ftkit.training.stop import StopRequest
from ftkit.training.weights import (
    adapter_tensors,
    named_weights,
    write_adapter,
    write_adapter_config,
    write_weights,
)
from ftkit.training.window import Moment, News, SentLine, Window, peak_gib

clock = time.monotonic


class TrustworthyTrainer(Trainer):
    """One process of a training run, whatever the method: it stands before a trainer of TRL's among the bases.

    A batch brings ``tokens``, the number of those that are not padding, ``rows``, the numbers of its source rows, and
    where TRL does not count them by labels, ``loss_tokens``.

    Args:
        sft: how often and how many checkpoints are kept, when training ends, and the rate's schedule.
        kwargs: those of TRL's trainer.
    """

    def __init__(self, *, sft: Sft, **kwargs: Any):
        super().__init__(**kwargs)
        model: Any = self.model
        _visit_less(model)
        self.stop = StopRequest()
        self._limit, self.patience = sft.save_total_limit, sft.early_stopping_patience
        self._schedule = sft
        self._save_s = math.inf if sft.save_minutes is None else 60 * sft.save_minutes
        self._saved_at = clock()
        self.saving_is_due = False
        self.writer = CheckpointWriter()
        self._states: dict[str, Any] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._window = Window()
        self._bad_loss: torch.Tensor | None = None
        self._news = News()
        self._line: SentLine | None = None
        self._rows: list[int] = []
        self.add_callback(_Guard(self))

    def resume_counts(self, log_history: list[dict[str, Any]]) -> None:
        """Go on counting where the checkpoint's last line of metrics stopped."""
        last = next((line for line in reversed(log_history) if "seconds" in line), None)
        self._window = Window(last["tokens"], last["loss_tokens"], last["seconds"]) if last else Window()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end; however it ends, the last step's line of metrics is written."""
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            with suppress(Exception):  # of a GPU that has failed
                self._write_line()
            raise

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of ``sft``, whose first step trains as well."""
        if self.lr_scheduler is None:
            found: Any = optimizer or self.optimizer
            self.lr_scheduler = rate_scheduler(found, self._schedule, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of one step, relieved of what is there for counting, and their loss tokens on all processes."""
        batches, loss_tokens = super().get_batch_samples(*args, **kwargs)
        self._count(batches, loss_tokens)
        return batches, loss_tokens

    def _count(self, batches: list[Any], loss_tokens: Any) -> None:
        self._rows = [row for batch in batches for row in batch.pop("rows")]
        counted = sum(batch.pop("loss_tokens", 0) for batch in batches)
        of_all = self._of_all_processes(counted) if loss_tokens is None else loss_tokens
        self._window.add(sum(batch.pop("tokens") for batch in batches), of_all)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._note(loss[0] if isinstance(loss, tuple) else loss)
        return loss

    def _note(self, loss: torch.Tensor) -> None:
        """Send the host word of loss, clocks and signals, before the backward pass, which it need not wait for."""
        bad = ~torch.isfinite(loss.detach())
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        if self.accelerator.sync_gradients:
            due = clock() - self._saved_at >= self._save_s
            code = self._bad_loss.long().view(1) + 2 * due + 4 * self.writer.failed + 8 * self.stop.signal
            self._news.send(gathered(code)[:, 0] if self.args.world_size > 1 else code)

    def before_optimizer_step(self) -> None:
        """Agree with the other processes whether to save or to stop, and refuse a step on a loss that is no number.

        Raises:
            StageError: a loss of this step is not finite, or the last checkpoint could not be written; the weights are
                still those of the step before. Or that step's gradient was not finite.
        """
        news = self._news.read()
        self._write_line()
        self._bad_loss = None
        self.stop.agreed = max(code // 8 for code in news)
        self.saving_is_due = any(code // 2 % 2 for code in news)
        if any(code // 4 % 2 for code in news):
            together(self.writer.wait)
        if any(code % 2 for code in news):
            rows = self._rows if news[self.args.process_index] % 2 else []
            rows = gather_object(rows) if self.args.world_size > 1 else rows
            named = ", ".join(map(str, rows[:8])) + (" …" if len(rows) > 8 else "")
            raise StageError(
                f"the loss of step {self.state.global_step + 1} is not a number; its rows are {named}",
                cure=f"sft.learning_rate={self.args.learning_rate / 2:g}, or leave these rows out",
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Figures on the held-out rows, of all processes together, by ``eval_…``; they go to the log."""
        figures = self.held_out_figures()
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        self._window.restart()
        return figures

    def held_out_figures(self) -> dict[str, float]:
        """``eval_loss`` and what else the method has to say of the held-out rows; each method's trainer has its own."""
        raise NotImplementedError

    @property
    def lines_may_wait(self) -> bool:
        """Whether a line of metrics may be written while the GPU is at the next step.

        Not where TRL's trainer adds figures of its own to the line: those of the next step would be among them.
        """
        return False

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """What follows a step: its line of metrics, a checkpoint, an evaluation, where it is time for one.

        The Trainer would read the loss here: the GPU would have nothing to do while the line is written and the next
        step begins.
        """
        self._write_line()
        control = self.control
        if control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._send_line(tr_loss, grad_norm, kwargs.get("learning_rate"))
            control.should_log = False
            ends = control.should_training_stop or control.should_epoch_stop
            if ends or control.should_save or control.should_evaluate or not self.lines_may_wait:
                self._write_line()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _send_line(self, tr_loss: torch.Tensor, grad_norm: Any, learning_rate: float | None) -> None:
        """Send a line's figures to the host; ``tr_loss``, the sum of the losses, begins anew."""
        tokens, loss_tokens = self._window.taken()
        norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        numbers = News()
        numbers.send(gathered(in_one((tr_loss, norm, tokens, loss_tokens, peak_gib()), self.args.device)))
        self._line = SentLine(
            steps=self.state.global_step - self._globalstep_last_logged,
            learning_rate=self._get_learning_rate() if learning_rate is None else learning_rate,
            numbers=numbers,
            process=self.args.process_index,
            ended=Moment(),
        )
        self._globalstep_last_logged = self.state.global_step
        tr_loss.zero_()

    def _write_line(self) -> None:
        """Write the line that was sent last, if it has not been written.

        Raises:
            StageError: the gradient of its step was not finite.
        """
        sent, self._line = self._line, None
        if sent is None:
            return
        line = sent.read(self._window)
        self._total_loss_scalar += line["loss"] * sent.steps
        if not math.isfinite(line["grad_norm"]):
            raise StageError(
                f"the gradient of step {self.state.global_step} is not finite",
                cure=f"sft.learning_rate={self.args.learning_rate / 2:g}; the last checkpoint is sound",
            )
        self.log(line)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Have a checkpoint's weights written; where they are sharded, TRL writes them with the optimiser."""
        if self.args.should_save and output_dir and not self.is_fsdp_enabled:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            model = cast(torch.nn.Module, self.model)
            if isinstance(model, PeftModel):
                write_adapter_config(model, Path(output_dir))
                self._states["weights"] = adapter_tensors(model)
            else:
                self._weights, self._states["weights"] = named_weights(model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the schedule's state and have the optimiser's written; sharded, each process writes its part here."""
        if self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            optimizer, schedule = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)
            self._states["optimizer"] = optimizer.state_dict()

    def load_weights(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint; a model that has not been trained yet is sharded first."""
        model: Any = self.model
        if self.is_fsdp_enabled and not isinstance(model, FSDPModule):
            model, self.optimizer = self.accelerator.prepare(model, self.create_optimizer())
        whole: Any = model
        self._load_from_checkpoint(str(checkpoint), whole)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the record says what a card would."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write what is small at once, and have the rest written and sealed beside the next steps.

        Training waits for the checkpoint before, for a copy of weights and optimiser in the host's memory, and where
        weights are sharded until each process has written its part, for only the seal is beside the next steps then.
        """
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        first, best = self.args.should_save, best_step(self.state.log_history)
        bare = cast(torch.nn.Module, self.model)  # ``model`` may be wrapped

        def clear() -> None:
            self.writer.wait()
            if first:
                shutil.rmtree(checkpoint, ignore_errors=True)

        def write() -> None:
            with saving(checkpoint):
                super(TrustworthyTrainer, self)._save_checkpoint(model, trial)

        def complete(states: dict[str, Any]) -> None:
            with removed_on_failure(checkpoint), saving(checkpoint):
                if "weights" in states:
                    if isinstance(bare, PeftModel):
                        write_adapter(states["weights"], checkpoint)
                    else:
                        write_weights(bare, checkpoint, weights | states["weights"])
                    torch.save(states["optimizer"], checkpoint / OPTIMIZER_NAME)
                mark_complete(checkpoint)
            with saving(folder):
                keep_newest(folder, self._limit, best=best)

        with self.writer.waiting():
            together(clear)
            try:
                together(write)
            except StageError:
                if first:
                    shutil.rmtree(checkpoint, ignore_errors=True)
                raise
            states, weights = self._states, self._weights
            self._states, self._weights = {}, {}
            together(lambda: self.writer.start(states, complete) if first else None)
        self._saved_at = clock()
        self._window.restart()

    def _of_all_processes(self, count: int) -> torch.Tensor | int:
        """The sum of every process's count, which stays on the device."""
        one = torch.tensor([count], device=self.args.device)
        return gathered(one).sum() if self.args.world_size > 1 else count


def _visit_less(model: torch.nn.Module) -> None:
    """Keep the Trainer's loop from visiting each of some thousand modules twice a step, while the GPU waits."""
    trained: list[torch.nn.Parameter] = []
    train = model.train
    train(True)

    def zero_grad(set_to_none: bool = True) -> None:
        if not trained:  # not before: sharding puts others in their place
            trained.extend(parameter for parameter in model.parameters() if parameter.requires_grad)
        for parameter in trained:
            parameter.grad = None

    model.__dict__["train"] = lambda mode=True: model if model.training == mode else train(mode)
    model.__dict__["zero_grad"] = zero_grad


class _Guard(TrainerCallback):
    """Calls the trainer's checks at their moments, and writes a line of metrics with every checkpoint."""

    def __init__(self, trainer: TrustworthyTrainer):
        self._trainer = trainer
        self._saves_after_epoch = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint brings its own logging_steps and save_steps, which may have been changed since.
        state.compute_steps(args, state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.before_optimizer_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._trainer.stop.agreed:
            control.should_save = control.should_training_stop = True
        if self._trainer.saving_is_due:
            control.should_save = True
        # So a checkpoint carries the metrics up to its step, and a resumed run's windows begin where they began before.
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        # The evaluation that follows may ask for a checkpoint of this step as well: it would take this one's place,
        # which may be the only whole one.
        if args.eval_strategy == IntervalStrategy.EPOCH and _ends_an_epoch(state):
            self._saves_after_epoch, control.should_save = control.should_save, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.stop.agreed and not _ends_an_epoch(state):
            control.should_evaluate = False  # a run that nothing stopped would not be evaluated here
        control.should_save = control.should_save or self._saves_after_epoch
        self._saves_after_epoch = False
        control.should_log = control.should_log or control.should_evaluate

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if stops_early(state.log_history, self._trainer.patience):
            control.should_save = control.should_training_stop = True
        if best_step(state.log_history) == state.global_step:
            control.should_save = True


def _ends_an_epoch(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
