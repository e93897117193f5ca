"""When a training by rewards has lost the language or the length of its answers: it stops and says so."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftkit.errors import StageError

LANGUAGE, LENGTH, CUT = "share/language", "completions/mean_length", "completions/clipped_ratio"
ALL_CUT = 0.95
"""Share of answers that do not end by themselves from which all count as cut off."""
SEEN = 0.2
"""Share of answers in the wanted language without which none can be lost."""


def collapse(history: Sequence[dict[str, Any]], share: float, lines: int) -> str:
    """What has collapsed, in words; empty while nothing has.

    Args:
        history: a trainer's logs.
        share: of what they have been, below which the language or the length counts as lost.
        lines: of the log, over which means are taken.
    """
    logs = [log for log in history if LENGTH in log]
    if len(logs) < 2 * lines:
        return ""
    first, last = logs[:lines], logs[-lines:]
    steps = f"steps {last[0]['step']} to {last[-1]['step']}"
    best = max(_mean(logs[i : i + lines], LANGUAGE) for i in range(len(logs) - lines + 1))
    now = _mean(last, LANGUAGE)
    if best >= SEEN and now < share * best:
        said = f"{now:.0%} of the answers of {steps} think in it, {best:.0%} did before"
        return f"the thinking has left its language: {said}"
    before, now = _mean(first, LENGTH), _mean(last, LENGTH)
    if now < share * before:
        return f"answers have become short: {now:.0f} tokens in {steps}, {before:.0f} at the beginning"
    before, now = _mean(first, CUT), _mean(last, CUT)
    if now >= ALL_CUT > before:
        return f"answers no longer end: {now:.0%} of those of {steps} are cut off, {before:.0%} were at the beginning"
    return ""


def _mean(logs: Sequence[dict[str, Any]], name: str) -> float:
    return fmean(log.get(name) or 0.0 for log in logs)


class StopsAtCollapse(TrainerCallback):
    """Ends the training when ``collapse`` finds something.

    Raises:
        StageError: names it; the checkpoints stay.
    """

    def __init__(self, share: float, lines: int):
        self._share, self._lines = share, lines

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if what := collapse(state.log_history, self._share, self._lines):
            slower = f"sft.learning_rate={args.learning_rate / 2:g}"
            cure = f"method.beta=0.04 (stays by the model it starts from), or {slower}; method.collapse=null trains on"
            raise StageError(what, where=str(args.output_dir), cure=cure)
