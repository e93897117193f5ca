"""The stand-in for Azure: started once, asked afresh by each test."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.needs import not_installed
from quick.client import install
from quick.service import Service
from quick.user import User
from sdk_worker import SdkWorker
from standin import StandIn

SCORE = """
import json, os
from pathlib import Path

def init():
    global config
    config = json.loads(next(Path(os.environ["AZUREML_MODEL_DIR"]).rglob("config.json")).read_text())
    print("model", config["name"])

def run(raw):
    return {"heard": json.loads(raw), "model": config["name"]}
"""


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Azure on loopback; hand ``azure.environment`` to the processes that shall speak to it."""
    if not shutil.which("node"):
        not_installed("no node on the PATH, for Azurite", "apt-get install nodejs npm")
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing outlives a terminated session
    stand_in = StandIn(tmp_path_factory.mktemp("azure"))
    try:
        yield stand_in
    finally:
        stand_in.stop()
        signal.signal(signal.SIGTERM, usual)


@pytest.fixture(autouse=True)
def nothing_out_of_line(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins a test without faults and records; ends it by holding what was sent against the rules."""
    if "azure" not in request.fixturenames:
        yield
        return
    stand_in: StandIn = request.getfixturevalue("azure")
    stand_in.reset()
    yield
    stand_in.verify()


@pytest.fixture(scope="session")
def sdk_process(azure: StandIn) -> Iterator[SdkWorker]:
    worker = SdkWorker(azure.environment)
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def sdk(azure: StandIn, sdk_process: SdkWorker, tmp_path_factory: pytest.TempPathFactory) -> SdkWorker:
    """The real SDK in a process of its own, on a workspace that has ``test-env`` and ``test-model``."""
    if azure.resources.find("environments/test-env/versions/1") is None:
        made = tmp_path_factory.mktemp("assets")
        context, model = made / "context", made / "model"
        texts = ((context, "Dockerfile", "FROM python:3.11\n"), (model, "config.json", '{"name": "m"}'))
        for folder, name, text in texts:
            folder.mkdir()
            (folder / name).write_text(text)
        sdk_process("make_environment", "test-env", str(context))
        sdk_process("register", "test-model", str(model))
        azure.record.clear()
    return sdk_process


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a trivial ``score.py``."""
    folder: Path = tmp_path_factory.mktemp("scoring")
    (folder / "score.py").write_text(SCORE)
    return str(folder)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Jobs and endpoints in this process, for ftkit's own code."""
    service = Service()
    install(service, monkeypatch)
    return service


@pytest.fixture
def user(service: Service, tmp_path: Path) -> Callable[..., User]:
    """A person by name, with a run of a name, at a machine of their own."""
    return lambda name="ann", run="jp": User(service, name, tmp_path / name, run)
