"""What a late stage would refuse is refused before the first one starts, and plan shows it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.packages import install_command
from ftkit.pipeline import predictions, preflight


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_and_a_missing_server_are_found_before_any_work(in_empty_folder: Path, taken_port: int) -> None:
    taken = resolve(["experiment=tiny", f"deployment.port={taken_port}", "stage=all"])
    (error,) = preflight.refusals(taken, taken.stages)
    assert f"port {taken_port} is in use" in error.what and error.cure.startswith("deployment.port=0")
    with pytest.raises(StageError, match="is in use"):
        preflight.refuse(taken)
    free = resolve(["experiment=tiny", "deployment.port=0", "stage=all"])
    assert list(preflight.refusals(free, free.stages)) == []


def test_a_predecessor_that_nobody_makes_is_named_before_the_first_stage(in_empty_folder: Path) -> None:
    config = resolve(["experiment=tiny", "stage=train,prepare"])
    (error,) = preflight.missing_predecessors(config, config.stages)
    assert error.cure == "stage=prepare,publish,train"


def test_what_is_missing_is_installed_from_the_checkout() -> None:
    assert install_command("train", "serve").endswith("[train,serve]'") and " -m pip install -e " in install_command(
        "x"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.heldout=0", "nothing: no loss of held-out rows is known"),
        ("dataset.heldout=0.05", "5 % of the questions"),
        ("dataset.validation=dev.jsonl", "the rows of dev.jsonl"),
    ],
)
def test_plan_says_what_is_held_out(in_empty_folder: Path, override: str, said: str) -> None:
    Path("dev.jsonl").write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    lines = dict(predictions.figures(resolve(["experiment=tiny", "stage=plan", override])))
    assert lines["held out"].startswith(said)
