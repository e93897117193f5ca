"""Schedules that transformers refuses, that train nothing, or whose rate rises; all_checks runs them."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.config.schedules import ARGUMENTS, BY_EVALUATION, given_arguments, why_too_short
from ftkit.config.schema import Config
from ftkit.errors import Problem, nearest

KEY = "sft.lr_scheduler_kwargs"


def schedule_takes_its_arguments(config: Config) -> Iterator[Problem]:
    kind, rate = config.sft.lr_scheduler_type, config.sft.learning_rate
    known, given = ARGUMENTS[kind], given_arguments(config.sft)
    for name, value in given.items():
        key = f"{KEY}.{name}"
        if name not in known:
            close = nearest(str(name), known)
            cure = f"did you mean {close}? " if close else f"it takes {', '.join(known) or 'none'}; "
            yield Problem(key, f"{kind} has no such argument", "", f"{cure}{key}=null takes it out")
        elif wrong := known[name](value, rate):
            yield Problem(key, f"{value!r} is not {wrong}", "", f"{key}=null takes what {kind} needs")
    if {"min_lr", "min_lr_rate"} <= given.keys() & known.keys():
        yield Problem(KEY, "min_lr and min_lr_rate are both given", "", f"leave one: {KEY}.min_lr_rate=null")


def warm_up_is_shorter_than_the_training(config: Config) -> Iterator[Problem]:
    steps = config.sft.warmup_steps
    if steps > 1 and not steps.is_integer():
        said = f"{steps:g} is neither a whole number of steps nor a share below 1"
        yield Problem("sft.warmup_steps", said, "", f"sft.warmup_steps={round(steps)}")
    elif config.sft.max_steps > 0 and (why := why_too_short(config, config.sft.max_steps)):
        yield Problem("sft.warmup_steps", why, "", "sft.warmup_steps=0.03, or a larger sft.max_steps")


def evaluations_come_after_whole_steps(config: Config) -> Iterator[Problem]:
    steps = config.sft.eval_steps
    if steps > 1 and not steps.is_integer():
        said = f"{steps:g} is neither a whole number of steps nor a share below 1"
        yield Problem("sft.eval_steps", said, "", f"sft.eval_steps={round(steps)}")


def schedule_has_the_evaluations_that_it_goes_by(config: Config) -> Iterator[Problem]:
    kind, key = config.sft.lr_scheduler_type, "sft.lr_scheduler_type"
    if kind not in BY_EVALUATION:
        return
    if config.sft.eval_strategy == "no":
        yield Problem(key, f"{kind} goes by evaluations, and sft.eval_strategy is no", "", "sft.eval_strategy=steps")
    elif not config.dataset.holds_out:
        yield Problem(key, f"{kind} goes by held-out rows, and dataset.heldout is 0", "", "dataset.heldout=0.05")


CHECKS = (
    schedule_takes_its_arguments,
    warm_up_is_shorter_than_the_training,
    evaluations_come_after_whole_steps,
    schedule_has_the_evaluations_that_it_goes_by,
)
