"""The rate over a training: what each of transformers' schedules takes, and how long it warms up. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ftkit.config.groups import Sft
from ftkit.config.schema import Config

Wrong = Callable[[Any, float], str]
"""What an argument should be, in words; empty if it is. Given its value and the highest rate."""
WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that change the rate after an evaluation, by its loss."""
LOWEST_SHARE = 0.1
"""Of the highest rate: where schedules end that must be told."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(low: float, high: float = math.inf) -> Wrong:
    words = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
    return lambda value, rate: "" if _is_number(value) and low <= value <= high else words


def _above_0(value: Any, rate: float) -> str:
    return "" if _is_number(value) and value > 0 else "a number above 0"


def _below_1(value: Any, rate: float) -> str:
    return "" if _is_number(value) and 0 < value < 1 else "a number between 0 and 1"


def _rate(value: Any, rate: float) -> str:
    return "" if _is_number(value) and 0 <= value <= rate else f"a rate from 0 to sft.learning_rate={rate:g}"


def _below_rate(value: Any, rate: float) -> str:
    return "" if _is_number(value) and 0 <= value < rate else f"a rate from 0 to below sft.learning_rate={rate:g}"


def _whole(low: int) -> Wrong:
    is_one = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low  # noqa: E731
    return lambda value, rate: "" if is_one(value) else f"a whole number of at least {low}"


def _one_of(*words: Any) -> Wrong:
    return lambda value, rate: "" if value in words else "one of " + ", ".join(map(str, words))


_SHARE, _SHAPE = _number(0, 1), _one_of("linear", "cosine", "1-sqrt")
_TO_A_LOWEST: Mapping[str, Wrong] = {"min_lr_rate": _SHARE, "min_lr": _rate, "num_cycles": _above_0}
_PLATEAU: Mapping[str, Wrong] = {
    "mode": _one_of("min"),
    "factor": _below_1,
    "patience": _whole(0),
    "threshold": _number(0),
    "threshold_mode": _one_of("rel", "abs"),
    "cooldown": _whole(0),
    "min_lr": _rate,
    "eps": _number(0),
}
ARGUMENTS: Mapping[str, Mapping[str, Wrong]] = {
    "cosine_with_min_lr": _TO_A_LOWEST,
    "cosine": {"num_cycles": _above_0},
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_restarts": {"num_cycles": _whole(1)},
    "polynomial": {"lr_end": _below_rate, "power": _above_0},
    "inverse_sqrt": {"timescale": _whole(1)},
    "cosine_warmup_with_min_lr": {**_TO_A_LOWEST, "warmup_lr_rate": _SHARE},
    "warmup_stable_decay": {
        "num_decay_steps": _whole(0),
        "num_stable_steps": _whole(0),
        "warmup_type": _SHAPE,
        "decay_type": _SHAPE,
        "min_lr_ratio": _SHARE,
        "num_cycles": _above_0,
    },
    "reduce_lr_on_plateau": _PLATEAU,
    "greedy": {
        **_PLATEAU,
        "warmup": _whole(0),
        "max_lr": _above_0,
        "smooth": _one_of(True, False),
        "window_size": _whole(1),
        "reset_start": _whole(0),
    },
}
"""The arguments of each schedule, under transformers' names."""


def given_arguments(sft: Sft) -> dict[str, Any]:
    """Those of ``sft.lr_scheduler_kwargs`` that are not null."""
    return {name: value for name, value in (sft.lr_scheduler_kwargs or {}).items() if value is not None}


def arguments(sft: Sft, steps: int) -> dict[str, Any]:
    """What a schedule is called with: the given arguments, and those that it must be told or would take amiss.

    Args:
        sft: the settings.
        steps: optimiser steps of the training.
    """
    kind, given = sft.lr_scheduler_type, given_arguments(sft)
    needed: dict[str, Any] = {}
    if "min_lr_rate" in ARGUMENTS[kind] and "min_lr" not in given:
        needed = {"min_lr_rate": LOWEST_SHARE}
    elif kind == "warmup_stable_decay":
        needed = {"num_decay_steps": min(math.ceil(LOWEST_SHARE * steps), steps - warm_up(sft, steps))}
    elif kind == "inverse_sqrt":
        needed = {"timescale": warm_up(sft, steps) or 10_000}
    elif kind == "polynomial":
        needed = {"lr_end": min(1e-7, LOWEST_SHARE * sft.learning_rate)}
    elif kind == "greedy":  # left alone it rises to a rate of 1
        needed = {"min_lr": LOWEST_SHARE * sft.learning_rate, "max_lr": sft.learning_rate}
    return needed | given


def warm_up(sft: Sft, steps: int) -> int:
    """Steps of rising rate; a share of all steps leaves at least one for the highest rate."""
    if sft.lr_scheduler_type in WITHOUT_WARM_UP:
        return 0
    if sft.warmup_steps >= 1:
        return int(sft.warmup_steps)
    return min(math.ceil(steps * sft.warmup_steps), steps - 1)


def planned_steps(config: Config, rows: int) -> int:
    """Optimiser steps for so many rows, after packing."""
    if config.sft.max_steps > 0:
        return config.sft.max_steps
    return math.ceil(math.ceil(rows / config.rows_per_step) * config.sft.num_train_epochs)


def why_too_short(config: Config, steps: int) -> str:
    """Why so many steps are too few for the schedule; empty if they are enough."""
    sft = config.sft
    rising, given = warm_up(sft, steps), given_arguments(sft)
    after = sum(given.get(name, 0) for name in ("num_stable_steps", "num_decay_steps"))
    if rising >= steps:
        return f"the warm-up takes {rising:,} steps and the training has {steps:,}: the rate never gets to its highest"
    if rising + after > steps:
        return f"warm-up, stable and decay steps are {rising + after:,}, and the training has {steps:,}"
    return ""


def in_words(config: Config, steps: int | None) -> str:
    """The rate over the training, for the plan."""
    sft = config.sft
    kind = sft.lr_scheduler_type
    rate = f"{sft.learning_rate:g}"
    if kind in WITHOUT_WARM_UP:
        text = f"{rate} from the first step on"
    elif steps is None:
        text = f"{rate} after a warm-up of {sft.warmup_steps:g}{' of all' if sft.warmup_steps < 1 else ''} steps"
    else:
        text = f"{rate} after {warm_up(sft, steps):,} steps of warm-up"
    known = arguments(sft, steps) if steps else given_arguments(sft)
    told = ", ".join(f"{name}={value:g}" if _is_number(value) else f"{name}={value}" for name, value in known.items())
    return f"{text}, then {kind}" + (f" ({told})" if told else "")
