"""What an engine does with an adapter, held against what training did: log-probabilities that are made up here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.adapter_effect import Effect

ROWS = [list(range(60)), list(range(100, 140))]
DRAWN = np.random.default_rng(0)
ATTENTION, EXPERTS = (DRAWN.normal(0, 0.3, sum(map(len, ROWS)) - 2) for _ in range(2))
BASE = DRAWN.normal(-3, 1, ATTENTION.size)


def by_row(values: np.ndarray) -> list[list[float]]:
    return [part.tolist() for part in np.split(values, [len(ROWS[0]) - 1])]


@pytest.fixture
def effect() -> Effect:
    parts = {"attention": ATTENTION, "experts": EXPERTS, "whole": ATTENTION + EXPERTS}
    return Effect(ROWS, by_row(BASE), {name: by_row(BASE + part) for name, part in parts.items()})


def compared(effect: Effect, change: np.ndarray, rounding: float) -> str:
    """What is said of an engine that rounds, each time anew, and changes so much by the adapter."""
    drawn = np.random.default_rng(1)
    base, adapted = (BASE + part + drawn.normal(0, rounding, BASE.size) for part in (np.zeros(BASE.size), change))
    return effect.compare(by_row(base), by_row(adapted))


def test_the_whole_adapter_within_rounding_is_as_trained(effect: Effect):
    said = compared(effect, ATTENTION + EXPERTS, 0.03)
    assert said.startswith("as trained: with it 98 log-probabilities of 2 rows change by 0.4")
    assert said.endswith("without it 0.026 from the trainer's")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (0 * BASE, "leaves all of it out"),
        (ATTENTION, "leaves experts out"),
        (EXPERTS, "leaves attention out"),
        (2 * ATTENTION + EXPERTS, "applies it otherwise than training"),
        (-ATTENTION - EXPERTS, "applies it otherwise than training"),
    ],
)
def test_less_or_something_else_is_refused_with_the_cure(effect: Effect, change: np.ndarray, said: str):
    for rounding in (0, 0.03):
        with pytest.raises(ModelError, match=f"^the engine {said}: .*; deployment.engine=transformers applies it"):
            compared(effect, change, rounding)


def test_what_rounding_hides_is_called_neither_right_nor_wrong(effect: Effect):
    for change in (ATTENTION + EXPERTS, EXPERTS, 0 * BASE):
        said = compared(effect, change, 0.3)
        assert said.startswith("not to be told from attention or experts or no adapter: ")


def test_it_is_read_as_it_was_written_or_refused(effect: Effect, tmp_path: Path):
    path = tmp_path / "effect.json"
    effect.write(path)
    read = Effect.read(path)
    assert read.rows == ROWS and np.allclose(read.parts["whole"][1], effect.parts["whole"][1], atol=1e-5)
    content = json.loads(path.read_text())
    for wrong in ({}, content | {"rows": ROWS[:1]}, content | {"parts": {}}, [1]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=r"effect\.json cannot be read: .*; stage=train force=true"):
            Effect.read(path)
