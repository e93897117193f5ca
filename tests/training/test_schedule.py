"""Every schedule that transformers knows: its own rates, but that no step is at a rate of 0 while it warms up."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from ftkit.config.checks import all_checks
from ftkit.config.groups import Schedule
from ftkit.config.resolve import resolve
from ftkit.config.schedules import ARGUMENTS, planned_steps, warm_up, why_too_short
from ftkit.training.schedule import rate_scheduler

RATE = 5e-3


def settings(kind: str, *overrides: str) -> Any:
    return resolve(["experiment=tiny", "stage=plan", f"sft.lr_scheduler_type={kind}", *overrides]).sft


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int, losses: list[float] | None = None) -> list:
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / RATE)
        optimizer.step()
        scheduler.step(*([losses[step]] if losses else []))
    return found


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def ours(kind: str, steps: int, *overrides: str, losses: list[float] | None = None) -> list[float]:
    of = optimizer()
    return rates(rate_scheduler(of, settings(kind, *overrides), steps), of, steps, losses)


def theirs(kind: str, steps: int, warmup: int, arguments: dict[str, Any]) -> list[float]:
    of = optimizer()
    return rates(get_scheduler(kind, of, warmup, steps, arguments), of, steps)


def test_all_schedules_of_transformers_are_there() -> None:
    assert set(get_args(Schedule)) == {kind.value for kind in SchedulerType} == set(ARGUMENTS)


OWN = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "inverse_sqrt": {"timescale": 4},
    "warmup_stable_decay": {"num_decay_steps": 2},
}
BY_STEP = [kind for kind in get_args(Schedule) if kind not in ("reduce_lr_on_plateau", "greedy")]


@pytest.mark.parametrize("kind", BY_STEP)
def test_each_alone_has_the_rates_of_transformers_after_the_warm_up(kind: str) -> None:
    """Twenty steps, four of warm-up."""
    found, own = ours(kind, 20, "sft.warmup_steps=4"), theirs(kind, 20, 4, OWN.get(kind, {}))
    assert found[4:] == pytest.approx(own[4:])
    if kind == "constant":
        assert found == [1.0] * 20
    elif kind == "cosine_warmup_with_min_lr":
        assert found == pytest.approx(own), "it never begins at 0"
    else:
        assert own[0] == 0 and found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("kind", BY_STEP)
def test_without_warm_up_and_in_a_training_of_one_step_the_first_step_trains(kind: str) -> None:
    assert ours(kind, 10, "sft.warmup_steps=0")[0] > 0.5
    assert ours(kind, 1)[0] > 0, "the default warms up for a share of all steps"
    assert max(ours(kind, 2)) > 0.5


@pytest.mark.parametrize(
    ("kind", "override", "last"),
    [
        ("cosine_with_min_lr", "min_lr_rate=0.5", 0.5),
        ("cosine_with_min_lr", "min_lr=1e-3", 0.2),
        ("warmup_stable_decay", "min_lr_ratio=0.25", 0.25),
        ("polynomial", "lr_end=2.5e-3", 0.5),
    ],
)
def test_own_arguments_are_taken(kind: str, override: str, last: float) -> None:
    found = ours(kind, 2000, f"sft.lr_scheduler_kwargs.{override}", "sft.warmup_steps=0")
    assert found[-1] == pytest.approx(last, abs=0.01) and max(found) == 1


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_by_the_loss_lowers_the_rate_and_never_raises_it_above_the_highest(kind: str) -> None:
    patience = "sft.lr_scheduler_kwargs.patience=1"
    worse = ours(kind, 12, patience, losses=[1.0 + step for step in range(12)])
    assert worse[0] == 1 and worse[-1] < 0.95 and worse == sorted(worse, reverse=True)
    assert max(ours(kind, 12, patience, losses=[12.0 - step for step in range(12)])) <= 1.0000001


def test_a_warm_up_as_long_as_the_training_is_said_once_the_rows_are_known() -> None:
    config = resolve(["experiment=tiny", "stage=plan", "sft.warmup_steps=7", "sft.num_train_epochs=1"])
    steps = planned_steps(config, 7 * config.rows_per_step)
    assert steps == 7 and "takes 7 steps and the training has 7" in why_too_short(config, steps)
    assert why_too_short(config, 8) == "" and warm_up(config.sft, 8) == 7
    assert not list(all_checks(config))
