"""The rate's schedule: transformers', but that its first step trains as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer
from transformers import get_scheduler

from ftkit.config.groups import Sft
from ftkit.config.schedules import arguments, warm_up


def rate_scheduler(optimizer: Optimizer, sft: Sft, steps: int) -> Any:
    """The schedule for so many optimiser steps.

    transformers' warm-ups begin at a rate of 0: the first step's rows would be read in vain, and those of a training
    of one step all of them. Here n steps of warm-up have 1/(n+1), …, n/(n+1) of the rate. From then on, and without a
    warm-up, rates are transformers'.
    """
    rising, told = warm_up(sft, steps), arguments(sft, steps)
    made: Any = get_scheduler(sft.lr_scheduler_type, optimizer, rising, steps, told)
    if made.get_last_lr()[0] == 0:
        longer: Any = get_scheduler(sft.lr_scheduler_type, optimizer, rising + 1, steps + 1, told)
        made = LambdaLR(optimizer, [partial(_one_later, rate) for rate in longer.lr_lambdas])
    return made


def _one_later(rate: Callable[[int], float], step: int) -> float:
    return rate(step + 1)
