"""Adapters by name at a managed endpoint: sent with their base as one model, and tried by vLLM's double first."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from endpoint_commands import NAME, fails, succeeds
from helpers.command import REPOSITORY, Command
from helpers.marks import needs_azures_server
from project import Project
from standin import StandIn

pytestmark = [
    pytest.mark.slow,
    needs_azures_server,
    pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started"),
]

RUN = (
    *("compute.nodes=1", "sft.max_steps=4", "sft.per_device_train_batch_size=2", "sft.eval_strategy=no"),
    "registration.model_name=ours",
)


@pytest.fixture(scope="module")
def project(azure: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that a job has trained, whose adapter lies in the workspace's store."""
    project = Project(tmp_path_factory.mktemp("adapters"), azure, "ja", *RUN)
    for stage in ("prepare,publish", "train"):
        succeeds(project.ftkit(f"stage={stage}"))
    assert not (project.run / "train" / "adapter").exists()
    return project


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What has the endpoint start the double, and serve the run's adapter."""
    folder = tmp_path_factory.mktemp("bin")
    double = REPOSITORY / "tests" / "helpers" / "vllm_double.py"
    start = f'PYTHONPATH="{REPOSITORY}" exec "{sys.executable}" "{double}" "$@"'
    (folder / "vllm").write_text(f"#!/bin/sh\n{start}\n", encoding="utf-8")
    (folder / "vllm").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = f"deployment.environment_variables={{PATH: '{path}'}}"
    return ["deployment.engine=vllm", "deployment.front_processes=1", "deployment.adapters={ja: outputs/ja}", variables]


@pytest.fixture(scope="module")
def ignored(project: Project, keys: list[str]) -> Command:
    """A deployment whose engine ignores the adapter; base and adapter lie in the workspace from then on."""
    variables = keys[-1].replace("{PATH", "{VLLM_DOUBLE_IGNORES: lora, PATH")
    return project.ftkit("stage=deploy", *keys[:-1], variables)


def test_an_engine_that_ignores_the_adapter_does_not_come_into_service(azure: StandIn, ignored: Command):
    fails(ignored, "blue did not start: adapter ja: the engine leaves all of it out: with it ")
    assert azure.costing() == []


@pytest.mark.usefixtures("ignored")
def test_it_is_fetched_sent_with_its_base_once_and_answers_by_its_name(
    azure: StandIn, project: Project, keys: list[str]
):
    planned = succeeds(project.ftkit("stage=plan", *keys))
    sizes = r"sends +package:tiny-gpt-oss, [1-9]\.\d MiB, and the adapters ja, (\d\.\d) MiB, as model ours-adapters; "
    found = re.search(sizes, planned)
    assert found and float(found[1]) > 0, planned
    (project.run / "train" / "adapter" / "adapter_model.safetensors").write_bytes(b"of an earlier training")
    out = succeeds(project.ftkit("stage=deploy,invoke", "invoke.model=ja", *keys))
    assert "adapter ja: fetching it from azureml://jobs/" in out
    assert re.search(r"model ours-adapters:1: tiny with ja, [1-9]\.\d MiB, nothing sent, it is there", out), out
    assert "blue: adapter ja: as trained: with it " in out
    assert "up to date" in succeeds(project.ftkit("stage=deploy", *keys))
    succeeds(project.ftkit("stage=invoke", "invoke.model=tiny", *keys))
    fails(project.ftkit("stage=invoke", "invoke.model=jaa", *keys), "no model is called 'jaa'; did you mean ja?")
    deployment = azure.resources.get(f"onlineEndpoints/{NAME}/deployments/blue")
    assert deployment["properties"]["model"].endswith("/models/ours-adapters/versions/1")
    assert azure.resources.find("models/ours/versions/1") is None, "no merged model is needed"
    succeeds(project.ftkit("stage=teardown", "yes=true"))
    assert azure.costing() == []
