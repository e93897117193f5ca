"""What a run shows while it trains: a bar or lines, ``metrics.jsonl``, TensorBoard files, and a picture of the loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftkit.console import console
from ftkit.training.losses import PARTS, losses_of, source_of
from ftkit.translation import said

COLUMNS = (
    "step", "loss", "learning_rate", "grad_norm", "tokens_per_s", "loss_tokens_per_s", "peak_gib", "seconds",
    "tokens", "loss_tokens"
)  # fmt: skip
"""Of a line of metrics.jsonl; seconds since the run began, interruptions not counted. An evaluation is a line of
``step`` and its losses. Figures of the method's own stand beside both, under TRL's names."""
OF_METHODS = ("reward", "logps/", "completions/", "share/", "frac_reward", "clip_ratio/", "kl")
"""What those names begin with."""
DRAWN = {
    "rewards/margins": "reward, chosen − rejected",
    "rewards/accuracies": "pairs the right way round",
    "reward": "reward",
    "share/right": "right answers",
    "share/language": "in the language",
    "completions/mean_length": "tokens of an answer",
    "entropy": "entropy",
}
"""Those of them that the picture shows below the loss."""
SAID = {
    "rewards/margins": "margin",
    "rewards/accuracies": "right way round",
    "reward": "reward",
    "share/right": "right",
    "share/language": "in the language",
    "completions/mean_length": "tokens",
}
"""Those that are printed, in words."""


class Watch(TrainerCallback):
    """Shows and records metrics; for the first process only.

    Files are rewritten from the checkpoint's own history when a run is resumed, so no step stands in them twice.

    Args:
        out: folder for ``metrics.jsonl`` and ``tensorboard/``.
        say: prints one line.
        tensorboard: whether there are event files.
        alone: no other run prints to the terminal, so that a bar can stay there.
    """

    def __init__(self, out: Path, say: Callable[[str], None], *, tensorboard: bool, alone: bool = True):
        self._metrics, self._events = out / "metrics.jsonl", out / "tensorboard"
        self._say, self._tensorboard, self._alone = say, tensorboard, alone
        self._bar: Progress | None = None
        self._writer: SummaryWriter | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shutil.rmtree(self._events, ignore_errors=True)
        if self._tensorboard:
            self._writer = SummaryWriter(str(self._events))
        self._metrics.write_text("", encoding="utf-8")
        for log in state.log_history:
            if line := line_of(log):
                self._record(line)
        out = console()
        if out.is_terminal and self._alone:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=out)
            self._task = self._bar.add_task("train", total=state.max_steps, completed=state.global_step, figures="")
            self._bar.start()
        self._first = state.global_step, _seconds(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        line = line_of({"step": state.global_step, **logs})
        if line is None:
            return
        self._record(line)
        if "loss" not in line:
            self._say_or_print(f"step {state.global_step}  {_held_out(line)}")
        elif self._bar:
            self._bar.update(self._task, figures=said(_figures(line)))
        else:
            done, began = state.global_step - self._first[0], self._first[1]
            left = (line["seconds"] - began) / done * (state.max_steps - state.global_step)
            width = len(str(state.max_steps))
            self._say(f"step {state.global_step:>{width}}/{state.max_steps}  {_figures(line)}  {_clock(left)} left")

    def _say_or_print(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(said(line))
        else:
            self._say(line)

    def close(self) -> None:
        """End the bar and the event file, however training ended."""
        if self._bar:
            self._bar.stop()
        if self._writer:
            self._writer.close()

    def _record(self, line: dict[str, Any]) -> None:
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._writer:
            kind = "train" if "loss" in line else "heldout"
            for name in line.keys() - {"step"}:
                self._writer.add_scalar(f"{kind}/{name.removeprefix('eval_')}", line[name], line["step"])
            self._writer.flush()


def line_of(log: dict[str, Any]) -> dict[str, Any] | None:
    """A line of metrics from one of the trainer's logs: of training, of an evaluation, or None."""
    if "eval_loss" in log:
        return {"step": log["step"]} | losses_of(log) | of_the_method(log)
    return {name: log.get(name) for name in COLUMNS} | of_the_method(log) if "loss" in log else None


def of_the_method(log: dict[str, Any]) -> dict[str, Any]:
    """A log's figures of the method's own."""
    found = {name: value for name, value in log.items() if name.removeprefix("eval_").startswith(OF_METHODS)}
    return found | ({"entropy": log["entropy"]} if "reward" in found and "entropy" in log else {})


def history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of training from a trainer's whole history."""
    return [line for log in log_history if (line := line_of(log)) and "loss" in line]


def loss_picture(lines: list[dict[str, Any]], evaluations: list[dict[str, Any]], name: str, path: Path) -> None:
    """Draw the loss over the steps as a PNG.

    Args:
        lines: of training.
        evaluations: with ``step`` and their losses.
        name: of the run, for the title.
        path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn_too = [(figure, label) for figure, label in DRAWN.items() if any(figure in line for line in lines)]
    figure = Figure(figsize=(8, 4.5 + 2 * len(drawn_too)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [4.5, *[2] * len(drawn_too)]
    axes, *others = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    _draw_losses(axes, lines, evaluations)
    if evaluations:
        axes.legend(frameon=False)
    title = f"{name}: loss"
    axes.set(title=title, ylabel="loss" if others else "cross entropy, nats per loss token", ylim=(0, None))
    for below, (what, label) in zip(others, drawn_too, strict=True):
        _draw_below(below, what, label, lines, evaluations)
    for each in (axes, *others):
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    (axes, *others)[-1].set_xlabel("optimiser step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, format="png", metadata={"Title": title})


def _draw_losses(axes: Any, lines: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Of training, of the held-out rows and their parts, and of each source of ``dataset.mix``."""
    axes.plot(
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        linewidth=1.5,
        marker="o" if len(lines) < 3 else "",
        label="training",
    )
    for part, label in zip(PARTS, ("held out", "its thinking", "its answers"), strict=True):
        if drawn := [(line["step"], line[part]) for line in evaluations if part in line]:
            style: dict[str, Any] = {"linewidth": 1.5} if part == PARTS[0] else {"linewidth": 1, "linestyle": "--"}
            axes.plot(*zip(*drawn, strict=True), marker="o", markersize=3, label=label, **style)
    for of_source in dict.fromkeys(name for line in evaluations for name in line if source_of(name)):
        drawn = [(line["step"], line[of_source]) for line in evaluations if of_source in line]
        style = {"linewidth": 1, "linestyle": ":", "marker": "o", "markersize": 3}
        axes.plot(*zip(*drawn, strict=True), label=f"held out, {source_of(of_source)}", **style)


def _draw_below(
    axes: Any, name: str, label: str, lines: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> None:
    """A figure of the method, of training and of the held-out rows."""
    for found, key, style in ((lines, name, {}), (evaluations, f"eval_{name}", {"marker": "o", "markersize": 3})):
        if points := [(line["step"], line[key]) for line in found if line.get(key) is not None]:
            axes.plot(*zip(*points, strict=True), linewidth=1.5, **style)
    axes.set_ylabel(label, fontsize=8)


def _figures(line: dict[str, Any]) -> str:
    own = "".join(f"{label} {line[name]:.4f}  " for name, label in SAID.items() if name in line)
    return (
        f"loss {line['loss']:.4f}  {own}lr {line['learning_rate']:.2e}  "
        f"{line['tokens_per_s']:,.0f} tokens/s  peak {line['peak_gib']:.2f} GiB"
    )


def _held_out(line: dict[str, Any]) -> str:
    parts = [f"{name.split('_')[1]} {line[name]:.4f}" for name in PARTS[1:] if name in line]
    parts += [f"{source_of(name)} {value:.4f}" for name, value in line.items() if source_of(name)]
    parts += [f"{label} {line[f'eval_{name}']:.4f}" for name, label in SAID.items() if f"eval_{name}" in line]
    return f"held-out loss {line['eval_loss']:.4f}" + (f"  ({', '.join(parts)})" if parts else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _seconds(state: TrainerState) -> float:
    lines = history(state.log_history)
    return lines[-1]["seconds"] if lines else 0.0
