"""Which training is the best, and when that cannot be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftkit.config.resolve import freeze, resolve
from ftkit.reports.runs import Training, best, data_differ, judged_by, read


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


def test_what_is_no_line_of_metrics_does_not_count(tmp_path: Path) -> None:
    """Guards: _has_numbers in reports.runs, and that whole_lines in files ends where its writer was killed."""
    step = {"step": 1, "loss": 0.5, "seconds": 1.0, "tokens": 9, "tokens_per_s": 9.0, "peak_gib": 0.1}
    lines = [step, step | {"loss": "low"}, step | {"step": None}, {"step": 2, "eval_loss": []}, {}, [step], step]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    freeze(resolve(["experiment=tiny", "stage=train"]), tmp_path / "config.yaml")
    found = read(tmp_path)
    assert found and (found.steps, found.evaluations) == ([step], [])
