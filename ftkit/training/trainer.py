"""TRL's SFTTrainer with what a run that can be trusted needs: whole checkpoints, honest counts, and a stop that
saves."""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from ftkit.errors import FtkitError, StageError
from ftkit.training.checkpoints import keep_newest, mark_complete, saving
from ftkit.training.heldout import HeldOut, best_step, means, stops_early
from ftkit.training.lora import bare_model
from ftkit.training.loss_head import add_loss_head
from ftkit.training.weights import write_weights

GIB = 2**30
clock = time.monotonic


class Trainer(SFTTrainer):
    """One process of a training run.

    Args:
        save_total_limit: whole checkpoints to keep.
        save_minutes: age of the last checkpoint at which another one is due; None goes by steps alone.
        heldout: what to evaluate on; None where ``eval_strategy`` is no.
        patience: evaluations without a lower loss after which training ends; None trains on.
        kwargs: SFTTrainer's own; ``data_collator`` is a ``Collator`` or ``JoiningCollator``, and the dataset
            ``training_rows``'.
    """

    def __init__(
        self,
        *,
        save_total_limit: int,
        save_minutes: float | None = None,
        heldout: HeldOut | None = None,
        patience: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        model: Any = self.model
        self._head_is_frozen = isinstance(model, PeftModel)
        if self._head_is_frozen:
            add_loss_head(bare_model(model))
        _visit_less(model)
        self.stop = StopRequest()
        self._limit, self._heldout, self.patience = save_total_limit, heldout, patience
        self._save_s = math.inf if save_minutes is None else 60 * save_minutes
        self._saved_at = clock()
        self.saving_is_due = False
        self._window = Window()
        self._bad_loss: torch.Tensor | None = None
        self._news = News()
        self._rows: list[int] = []
        self.add_callback(_Guard(self))

    def resume_counts(self, log_history: list[dict[str, Any]]) -> None:
        """Go on counting where the checkpoint's last line of metrics stopped."""
        last = next((line for line in reversed(log_history) if "seconds" in line), None)
        self._window = Window(last["tokens"], last["loss_tokens"], last["seconds"]) if last else Window()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of one step, relieved of what is there for counting, and their loss tokens on all processes."""
        batches, loss_tokens = super().get_batch_samples(*args, **kwargs)
        self._rows = [row for batch in batches for row in batch.pop("rows")]
        self._window.add(sum(batch.pop("tokens") for batch in batches), loss_tokens)
        return batches, loss_tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the step's loss tokens; by ``loss_head`` where the batch and the model are made for it."""
        if self.aux_loss_enabled or not self._head_is_frozen or "loss_positions" not in inputs:
            inputs = {name: value for name, value in inputs.items() if not name.startswith("loss_")}
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            count = len(inputs["loss_targets"]) if num_items_in_batch is None else num_items_in_batch
            loss = model(**inputs) * (self.args.world_size / torch.as_tensor(count).clamp(min=1))
        self._note(loss[0] if return_outputs else loss)
        return loss

    def _note(self, loss: torch.Tensor) -> None:
        """Send the host word of loss, clocks and signals, before the backward pass, which it need not wait for."""
        bad = ~torch.isfinite(loss.detach())
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        if self.accelerator.sync_gradients:
            due = clock() - self._saved_at >= self._save_s
            code = self._bad_loss.long().view(1) + 2 * due + 4 * self.stop.signal
            self._news.send(gathered(code)[:, 0] if self.args.world_size > 1 else code)

    def before_optimizer_step(self) -> None:
        """Agree with the other processes whether to save or to stop, and refuse a step on a loss that is no number.

        Raises:
            StageError: a loss of this step is not finite; the weights are still those of the step before.
        """
        news = self._news.read()
        self._bad_loss = None
        self.stop.agreed = max(code // 4 for code in news)
        self.saving_is_due = any(code // 2 % 2 for code in news)
        if any(code % 2 for code in news):
            rows = self._rows if news[self.args.process_index] % 2 else []
            rows = gather_object(rows) if self.args.world_size > 1 else rows
            named = ", ".join(map(str, rows[:8])) + (" …" if len(rows) > 8 else "")
            raise StageError(
                f"the loss of step {self.state.global_step + 1} is not a number; its rows are {named}",
                cure=f"sft.learning_rate={self.args.learning_rate / 2:g}, or leave these rows out",
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean loss on the held-out rows, of all processes together, by ``eval_…``; goes to the log."""
        assert self._heldout is not None
        model: Any = self.model
        with self.accelerator.autocast():
            here = self._heldout.sums(model, process=self.args.process_index, processes=self.args.world_size)
        there = gathered(here.flatten().to(self.args.device))
        losses = means(there.sum(0).view(3, 2).cpu())
        self.log(dict(losses))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        self._window.restart()
        return losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._window.close(self._gathered)
            grad_norm = logs.get("grad_norm", 0.0)
            if not math.isfinite(grad_norm):
                raise StageError(
                    f"the gradient of step {self.state.global_step} is not finite",
                    cure=f"sft.learning_rate={self.args.learning_rate / 2:g}; the last checkpoint is sound",
                )
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights; where they are sharded, TRL writes them with the optimiser."""
        if self.args.should_save and output_dir and not self.is_fsdp_enabled:
            model: Any = self.model
            write_weights(model, Path(output_dir))

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
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        first = self.args.should_save

        def write() -> None:
            with saving(checkpoint):
                super(Trainer, self)._save_checkpoint(model, trial)

        def seal() -> None:
            with saving(checkpoint):
                mark_complete(checkpoint)

        try:
            if first:
                shutil.rmtree(checkpoint, ignore_errors=True)
            together(lambda: None)
            together(write)
            together(seal if first else lambda: None)
        except StageError:
            if first:
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise
        if first:
            keep_newest(folder, self._limit, best=best_step(self.state.log_history))
        self._saved_at = clock()
        self._window.restart()

    def _gathered(self, tokens: int) -> tuple[int, float]:
        """Tokens of all processes, and the highest peak of memory among them in GiB."""
        here = torch.tensor([float(tokens), peak_gib()], dtype=torch.float64, device=self.args.device)
        there = gathered(here)
        return int(there[:, 0].sum()), float(there[:, 1].max())


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


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The values (n,) of every process, (processes, n)."""
    together = gather(values)
    assert isinstance(together, torch.Tensor)
    return together.view(-1, len(values))


def together(work: Callable[[], None]) -> None:
    """Do a piece of work on every process; when it fails on one, fail on all, so that none waits for ever.

    Raises:
        StageError: as raised on this process, or else what another process reports.
    """
    error: FtkitError | None = None
    try:
        work()
    except FtkitError as raised:
        error = raised
    failed = [text for text in gather_object([str(error) if error else ""]) if text]
    if error:
        raise error
    if failed:
        raise StageError(f"another process reports: {failed[0]}")


class Window:
    """Counts of tokens and seconds: of the whole run, and since the last line of metrics.

    Args:
        tokens: trained on so far, padding not counted.
        loss_tokens: of them, with loss.
        seconds: so far.
    """

    def __init__(self, tokens: int = 0, loss_tokens: int = 0, seconds: float = 0.0):
        self.tokens, self.loss_tokens = tokens, loss_tokens
        self._began = time.perf_counter() - seconds
        self._new_tokens = 0
        self._new_loss_tokens: torch.Tensor | int = 0
        self.restart()

    def restart(self) -> None:
        """Begin to measure speed from now: saving is not training."""
        self._since = time.perf_counter()

    def add(self, tokens: int, loss_tokens: torch.Tensor | int | None) -> None:
        """Count one optimiser step; ``loss_tokens`` stays on the device, for reading it would make the host wait."""
        self._new_tokens += tokens
        self._new_loss_tokens = self._new_loss_tokens + (0 if loss_tokens is None else loss_tokens)

    def close(self, gathered: Callable[[int], tuple[int, float]]) -> dict[str, float]:
        """Figures for a line of metrics; the next window begins.

        Args:
            gathered: sums tokens over processes, and gives the peak of memory in GiB.
        """
        (tokens, peak), loss_tokens, now = gathered(self._new_tokens), int(self._new_loss_tokens), time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        self.tokens, self.loss_tokens = self.tokens + tokens, self.loss_tokens + loss_tokens
        self._new_tokens, self._new_loss_tokens, self._since = 0, 0, now
        return {
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "tokens_per_s": tokens / elapsed,
            "loss_tokens_per_s": loss_tokens / elapsed,
            "peak_gib": peak,
            "seconds": now - self._began,
        }


class News:
    """Numbers on their way from the device to the host."""

    def __init__(self) -> None:
        self._numbers = torch.zeros(1, dtype=torch.long)
        self._arrived: torch.cuda.Event | None = None

    def send(self, numbers: torch.Tensor) -> None:
        """Send (n,) integers without waiting for the device."""
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = None
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[int]:
        """What was sent last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


class StopRequest:
    """Ctrl-C or SIGTERM: the present step is finished and saved, then training stops. A second Ctrl-C stops at once.

    Attributes:
        signal: number of the signal that came to this process; 0 if none has.
        agreed: number of a signal that came to any process, as all of them know since the last optimiser step.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.agreed = 0

    @contextmanager
    def listening(self, say: bool) -> Iterator[None]:
        """Take the signals over. Python lets only the main thread do so; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: FrameType | None) -> None:
            # torchrun passes Ctrl-C on, so that a worker gets it twice.
            if self.signal and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
                raise KeyboardInterrupt
            if say and not self.signal:
                os.write(sys.stderr.fileno(), b"\nfinishing this step and saving it; Ctrl-C again stops at once\n")
            self.signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Guard(TrainerCallback):
    """Calls the trainer's checks at their moments, and writes a line of metrics with every checkpoint."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

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

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_log or control.should_evaluate

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if stops_early(state.log_history, self._trainer.patience):
            control.should_save = control.should_training_stop = True
        if best_step(state.log_history) == state.global_step:
            control.should_save = True


def peak_gib() -> float:
    """Highest memory so far in GiB: allocated on the GPU, or resident in this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
