"""deployment.gate: a model that is worse than asked for is not registered; one that keeps the rules is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command import FinishedRun

from ftkit.config.gate import parse


@pytest.fixture
def evaluated(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run, to register from."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    return replace(finished_run, folder=tmp_path)


def test_a_model_that_breaks_a_rule_is_not_registered(evaluated: FinishedRun):
    refused = evaluated.ftkit("stage=register", 'deployment.gate=["thinks_in_japanese >= 0.95","right > base + 0.5"]')
    assert refused.status == 1
    assert "the gate is closed: right > base + 0.5: the merged model has 0." in refused.err
    assert "thinks_in_japanese" not in refused.err.partition("cure")[0]
    assert "43 questions" in refused.err and "deployment.gate" in refused.err


def test_a_model_that_keeps_the_rules_is_registered(evaluated: FinishedRun):
    done = evaluated.ftkit("stage=register", 'deployment.gate=["thinks_in_japanese >= 0.95", "parses >= base"]')
    assert done.status == 0, done.err
    assert "gate: thinks_in_japanese >= 0.95, parses >= base, all kept" in done.out


def test_a_gate_needs_figures(evaluated: FinishedRun):
    missing = evaluated.ftkit("stage=register", 'deployment.gate=["right >= 0"]', "evaluation.questions=5")
    assert missing.status == 1
    assert "evaluate was run with evaluation.questions=64" in missing.err


def test_a_rule_that_cannot_be_read_is_a_configuration_error(evaluated: FinishedRun):
    refused = evaluated.ftkit("stage=register", 'deployment.gate=["rihgt >= 0.9","right is good"]')
    assert refused.status == 2
    assert "no measure 'rihgt'" in refused.err and "a rule is a measure" in refused.err


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
