"""What ``auto`` stands for: rows at a time, layers recomputed, what is kept of them and the format of the experts'
weights that train fastest in the GPU's memory; imports no torch.

The rows of a step stay the same: accumulation gives way to larger batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ftkit.config.schema import Config
from ftkit.data.row_lengths import RowLengths, at_their_longest, on_average
from ftkit.families import family_of
from ftkit.models.speed import Rates, rates_of, reference_rates, tokens_per_second
from ftkit.models.training_memory import GIB, footprint, fused

USABLE = 0.92
"""Share of the GPU's memory that a prediction may fill: predictions were up to 3 % below what was measured, and the
driver and fragments of the allocator need their part."""
SMALLER = 0.85
"""What has run out of memory is followed by a choice that needs at most this share of it."""
AS_FAST = 0.97
"""Share of the fastest's tokens/s from which on less memory counts for more."""
STEPS = 6
"""Parts in which layers are recomputed or not."""
FILE = "memory.json"
"""Beside the checkpoints: what has run out of memory."""


@dataclass(frozen=True)
class Choice:
    """A configuration that leaves nothing open.

    Attributes:
        config: with numbers in the place of every auto.
        gib: predicted peak of a GPU.
        tokens_per_s: predicted, of all GPUs; of an H100 where the GPU is not known, and 0 without a prediction.
    """

    config: Config
    gib: float
    tokens_per_s: float

    def __str__(self) -> str:
        sft, layers = self.config.sft, self.config.model.architecture.num_hidden_layers
        recomputed = sft.recomputed_layers(layers)
        words = {0: "no layer recomputed", layers: "all layers recomputed"}
        many = sft.rows_at_a_time
        rows = "1 row at a time" if many == 1 else f"{many} rows at a time"
        recomputing = words.get(recomputed, f"{recomputed} of {layers} layers recomputed")
        if sft.keeps_attention:
            recomputing = f"{recomputing} but for attention"
        kind = "experts in mxfp4" if self.config.model.weights == "mxfp4" else "dense weights"
        return f"{rows}, {recomputing}, {kind}"


def is_open(config: Config) -> bool:
    """Whether anything is left to choose."""
    sft = config.sft
    left = sft.per_device_train_batch_size, sft.gradient_checkpointing, config.model.weights
    return "auto" in left or sft.may_keep_attention


def choices(
    config: Config, lengths: RowLengths | None = None, *, below: float | None = None, dense: bool = False,
    plain: bool = False,
) -> list[Choice]:  # fmt: skip
    """All that fit, the best first; the smallest alone where none does.

    Args:
        config: what is not auto in it stands.
        lengths: of the training rows, where they are known: more of them fit at a time if they are not packed.
        below: GiB that have run out of memory.
        dense: whether the checkpoint's experts are dense, and cannot be kept in MXFP4.
        plain: whether ftkit's kernels cannot run: the smallest is taken then.
    """
    rates = rates_of(config) or reference_rates()
    found = [_choice(made, lengths, rates) for made in _settlements(config, dense, fused(config) and not plain)]
    has = config.compute.gib_per_gpu
    limit = min(USABLE * (has or 0) or float("inf"), SMALLER * below if below else float("inf"))
    fitting = sorted((c for c in found if c.gib <= limit), key=lambda c: -c.tokens_per_s)
    if not fitting:
        return [min(found, key=lambda c: c.gib)]
    fastest = fitting[0].tokens_per_s
    best = min((c for c in fitting if c.tokens_per_s >= AS_FAST * fastest), key=lambda c: c.gib)
    return [best, *(c for c in fitting if c is not best)]


def settle(config: Config, lengths: RowLengths | None = None) -> Config:
    """The configuration with the best choice in the place of every auto; the same if there is none."""
    return choices(config, lengths)[0].config if is_open(config) else config


def runner_up(found: list[Choice]) -> Choice | None:
    """The next best that differs in more than the rows at a time."""
    best = found[0].config

    def kind(config: Config) -> tuple[object, ...]:
        return config.sft.gradient_checkpointing, config.sft.keep_attention, config.model.weights

    return next((c for c in found[1:] if kind(c.config) != kind(best)), found[1] if len(found) > 1 else None)


def ran_out(checkpoints: Path) -> float | None:
    """Predicted GiB of what has run out of memory here before."""
    try:
        return float(json.loads((checkpoints / FILE).read_text(encoding="utf-8"))["below_gib"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_ran_out(checkpoints: Path, gib: float) -> None:
    """Leave word of the predicted GiB, so that this run and those that resume it choose less."""
    (checkpoints / FILE).write_text(json.dumps({"below_gib": gib}), encoding="utf-8")


def predicted_gib(config: Config, lengths: RowLengths | None) -> float:
    """Peak of a GPU, with the longest rows that can meet in a batch."""
    return footprint(at_their_longest(config, lengths)).total / GIB


def _choice(config: Config, lengths: RowLengths | None, rates: Rates) -> Choice:
    speed = tokens_per_second(on_average(config, lengths), rates) if fused(config) else 0.0
    return Choice(config, predicted_gib(config, lengths), speed)


def _settlements(config: Config, dense: bool, known: bool) -> list[Config]:
    """Every combination; without our kernels, whose memory and speed are known, the smallest one."""
    sft, model = config.sft, config.model
    layers = model.architecture.num_hidden_layers
    rows = [sft.rows_at_a_time]
    recomputed: list[bool | int] = [sft.recomputed_layers(layers)]
    weights = [model.weights if model.weights != "auto" else "dense"]
    if known and sft.per_device_train_batch_size == "auto":
        rows = [n for n in range(1, sft.gradient_accumulation_steps + 1) if sft.gradient_accumulation_steps % n == 0]
    if known and sft.gradient_checkpointing == "auto":
        recomputed = sorted({layers * part // STEPS for part in range(STEPS + 1)})
    if known and model.weights == "auto" and not dense and family_of(model.architecture.model_type).mxfp4:
        weights = ["dense", "mxfp4"]
    keeping = [False, True] if known and sft.may_keep_attention else [sft.keep_attention is True]
    return [
        _settled(config, n, count, kept, kind)
        for n, count, kept, kind in product(rows, recomputed, keeping, weights)
        if count or len(keeping) == 1 or not kept
    ]


def _settled(config: Config, rows: int, recomputed: int, keep: bool, weights: str) -> Config:
    sft, layers = config.sft, config.model.architecture.num_hidden_layers
    accumulated = sft.gradient_accumulation_steps
    if sft.per_device_train_batch_size == "auto":
        accumulated //= rows
    shown = {0: False, layers: True}.get(recomputed, recomputed)
    changed = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulated,
        "gradient_checkpointing": shown,
        "keep_attention": keep,
    }
    return config.model_copy(
        update={
            "sft": sft.model_copy(update=changed),
            "model": config.model.model_copy(update={"weights": weights}),
        }
    )
