"""Which training is the best, and when that cannot be said."""

from __future__ import annotations

from typing import Any

from ftkit.reports.runs import Training, best, data_differ, judged_by


def training(name: str, path: str = "rows.jsonl", **result: Any) -> Training:
    return Training(name, "finished", "", {"dataset.path": path}, [], [], result, "here")


def test_a_run_without_held_out_rows_does_not_turn_the_others_ranking_into_one_by_training_loss() -> None:
    found = [
        training("overfitted", eval_loss=0.9, last_loss=0.1),
        training("better", eval_loss=0.5, last_loss=0.4),
        training("not measured", eval_loss=None, last_loss=0.01),
    ]
    winner = best(found)
    assert judged_by(found) == "eval_loss" and winner and winner.name == "better"
    assert judged_by(found[2:]) == "last_loss"


def test_losses_on_different_rows_are_known_to_say_little() -> None:
    assert data_differ([training("a"), training("b", "other.jsonl")])
    assert not data_differ([training("a"), training("b")])
