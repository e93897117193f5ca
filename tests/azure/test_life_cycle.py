"""experiment=tiny-azure by the command line: the whole life cycle on two nodes, a second run, and what was sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command, run_ftkit
from standin import StandIn

TINY = ("experiment=tiny-azure",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("azure-life-cycle")


@pytest.fixture
def ftkit(azure: StandIn, folder: Path):
    return lambda *arguments: run_ftkit(*TINY, *arguments, cwd=folder, **azure.environment)


def record(folder: Path, stage: str) -> dict:
    return json.loads((folder / "outputs" / "tiny-azure" / stage / "record.json").read_text())


def test_try(azure: StandIn, ftkit, folder: Path):
    done: Command = ftkit("stage=environment,prepare,publish,train,merge,register")
    print(done.out, done.err)
    assert done.status == 0
