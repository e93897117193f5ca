"""registration.gate: a model that is worse than asked for is not registered; one that keeps the rules is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import FinishedRun

from ftkit.config.gate import broken_guard, parse


@pytest.fixture
def evaluated(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run, to register from."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    return replace(finished_run, folder=tmp_path)


def test_a_model_that_breaks_a_rule_is_not_registered(evaluated: FinishedRun):
    refused = evaluated.ftkit("stage=register", 'registration.gate=["thinks_in_japanese >= 0.95","right > base + 0.5"]')
    assert refused.status == 1
    assert "the gate is closed: right > base + 0.5: the merged model has 0." in refused.err
    assert "thinks_in_japanese" not in refused.err.partition("cure")[0]
    assert "43 questions" in refused.err and "registration.gate" in refused.err


def test_a_model_that_keeps_the_rules_is_registered(evaluated: FinishedRun):
    done = evaluated.ftkit("stage=register", 'registration.gate=["thinks_in_japanese >= 0.95", "parses >= base"]')
    assert done.status == 0, done.err
    assert "gate: thinks_in_japanese >= 0.95, parses >= base, all kept" in done.out


def test_a_gate_needs_figures(evaluated: FinishedRun):
    missing = evaluated.ftkit("stage=register", 'registration.gate=["right >= 0"]', "evaluation.questions=5")
    assert missing.status == 1
    assert "evaluate was run with evaluation.questions=64" in missing.err


def test_a_rule_that_cannot_be_read_is_a_configuration_error(evaluated: FinishedRun):
    refused = evaluated.ftkit("stage=register", 'registration.gate=["rihgt >= 0.9","right is good"]')
    assert refused.status == 2
    assert "no measure 'rihgt'" in refused.err and "a rule is a measure" in refused.err


def test_a_model_that_forgets_what_the_guard_asks_is_not_registered(evaluated: FinishedRun):
    """The guard's questions are put beside the held-out ones, to both models, and its figures close the gate alone."""
    rows = [{"question": f"{i}+1は？", "answer": str(i + 1)} for i in range(6)]
    (evaluated.folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guard = ["evaluation.guard.path=general.jsonl", "evaluation.guard.match=last-number", "evaluation.questions=8"]
    done = evaluated.ftkit("stage=evaluate", *guard)
    assert done.status == 0 and "6 questions of general.jsonl" in done.out, done.err
    record = json.loads((evaluated.outputs / "evaluate" / "record.json").read_text())["result"]
    assert record["questions"] == 8 and record["guard"]["questions"] == 6
    assert record["guard"]["task"] == "general.jsonl" and set(record["guard"]["base"]) >= {"right", "tokens"}
    answers = [json.loads(line) for line in (evaluated.outputs / "evaluate/answers.jsonl").read_text().splitlines()]
    assert [line["expected"] for line in answers if line.get("guard")] == [row["answer"] for row in rows]
    assert "6 questions of general.jsonl" in (evaluated.outputs / "evaluate/report.html").read_text()
    kept = evaluated.ftkit("stage=register", *guard, "registration.model_name=kept", "evaluation.guard.may_lose=0.05")
    lost = record["guard"]["base"]["right"] - record["guard"]["merged"]["right"]
    assert kept.status == (0 if lost <= 0.05 else 1), kept.err
    assert ("gate: guard general.jsonl, all kept" if lost <= 0.05 else "evaluation.guard.may_lose=0.05") in (
        kept.out + kept.err
    )


@pytest.mark.parametrize(("merged", "may_lose", "holds"), [(0.5, 0.1, True), (0.39, 0.1, False), (0.4, 0.1, True),
                                                         (0.49, 0.0, False), (0.9, 0.0, True)])  # fmt: skip
def test_what_a_guard_lets_a_model_lose(merged: float, may_lose: float, holds: bool):
    measured = {"task": "general.jsonl", "base": {"right": 0.5}, "merged": {"right": merged}}
    said = broken_guard(may_lose, measured)
    assert (said == "") is holds
    assert holds or ("of general.jsonl the merged model has" in said and "the base has 0.50" in said)


@pytest.mark.parametrize(
    ("rule", "merged", "base", "holds"),
    [
        ("right >= 0.5", 0.5, 0.0, True),
        ("right > 0.5", 0.5, 0.0, False),
        ("right >= base", 0.4, 0.5, False),
        ("right >= base - 0.1", 0.4, 0.5, True),
        ("tokens<=base+10", 60, 50, True),
        ("right >= adapter - 0.1", 0.4, 0.5, True),
        ("right > adapter", 0.5, 0.5, False),
        ("pass@4 >= base", 0.5, 0.5, True),
        ("pass@16 > 0.9", 0.9, 0.5, False),
    ],
)
def test_rules(rule: str, merged: float, base: float, holds: bool):
    measure = parse(rule).measure
    measured = {"merged": {measure: merged}, "base": {measure: base}, "adapter": {measure: base}}
    assert (parse(rule).broken(measured) == "") is holds


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("lm_eval.gsm8k.exact_match.strict-match >= base - 0.05", ""),
        ("lm_eval.gsm8k.exact_match.strict-match > 0.7", "the merged model has 0.500"),
        ("lm_eval.gsm8k.exact_match >= base", "did you mean lm_eval.gsm8k.exact_match.strict-match?"),
    ],
)
def test_rules_on_figures_of_lm_eval(rule: str, said: str):
    figure = {"name": "lm_eval.gsm8k.exact_match.strict-match", "merged": 0.5, "base": 0.53}
    broken = parse(rule).broken({"merged": {}, "base": {}, "lm_eval": {"figures": [figure]}})
    assert said in broken and bool(broken) is bool(said)
