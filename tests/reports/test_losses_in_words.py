"""The page says what the loss is that its curves show, which is another with each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftkit.reports.runs import Training
from ftkit.reports.trainings import PAGE, write_report

DPO, GRPO = ({"method.name": name, "method.loss_type": kind} for name, kind in (("dpo", "sigmoid"), ("grpo", "dapo")))
STEP = {"step": 1, "loss": 0.5, "seconds": 1.0, "tokens": 10, "tokens_per_s": 10.0, "peak_gib": 1.0}


def page(folder: Path, *settings: dict[str, Any]) -> str:
    found = [
        Training(f"run{number}", "finished", "", each, [STEP], [], {"last_loss": 0.5}, "here")
        for number, each in enumerate(settings)
    ]
    write_report(found, folder, folder)
    return (folder / PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", [{"method.name": "sft"}, {}], ids=["sft", "older than the group"])
def test_a_supervised_runs_is_a_cross_entropy(tmp_path: Path, settings: dict[str, Any]) -> None:
    written = page(tmp_path, settings)
    assert "The loss of sft is cross entropy in nats for each token that carries loss." in written
    assert "not to be compared" not in written


def test_of_pairs_and_of_rewards_it_is_the_librarys_own(tmp_path: Path) -> None:
    written = page(tmp_path, DPO, DPO | {"method.loss_type": ["sigmoid", "sft"]})
    assert "The loss of dpo is as TRL defines it for loss_type=sigmoid, sigmoid + sft, the mean over pairs." in written
    assert "nats" not in written
    written = page(tmp_path, GRPO)
    assert "The loss of grpo is as TRL defines it for loss_type=dapo, which says little without the rewards." in written
    assert "nats" not in written


def test_of_several_methods_each_is_said_and_that_they_do_not_compare(tmp_path: Path) -> None:
    written = page(tmp_path, DPO, {"method.name": "sft"})
    assert "The loss of dpo is as TRL" in written and "The loss of sft is cross entropy" in written
    assert "Losses of different methods are not to be compared." in written
