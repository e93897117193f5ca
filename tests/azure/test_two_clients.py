"""Two people with machines of their own, one workspace, at the same time: nobody touches what is the other's."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import Command, read_until
from project import Project
from standin import StandIn, names

pytestmark = pytest.mark.slow
SHORT = (
    *("compute.nodes=1", "sft.max_steps=2", "sft.per_device_train_batch_size=2"),
    *("dataset.max_rows=40", "deployment=vllm"),
)
IDENTITIES = {"ann": names.CLIENT, "bob": names.COLLEAGUE}


@pytest.fixture
def people(azure: StandIn, tmp_path: Path) -> Iterator[list[Project]]:
    """Each with a run and an endpoint of a name of their own; a small server stands for vLLM."""
    azure.wipe()
    server = Path(__file__).with_name("chat_container.py")
    azure.serving.containers["vllm/vllm-openai"] = [sys.executable, str(server), "{port}", "{model}", "no gate"]
    found = []
    for name, client in IDENTITIES.items():
        (tmp_path / name).mkdir()
        signed_in = {"AZURE_CLIENT_ID": client, "AZURE_CLIENT_SECRET": names.SECRETS[client]}
        own = (*SHORT, f"deployment.endpoint_name=ftkit-{name}")
        found.append(Project(tmp_path / name, azure, name, *own, **signed_in))
    yield found
    azure.wipe()


def succeeds(done: Command) -> str:
    assert done.status == 0, str(done)
    return done.out


def test_two_people_train_deploy_and_tear_down_beside_each_other(azure: StandIn, people: list[Project]):
    ann, bob = people
    commands = [person.started("stage=prepare,publish,train,merge,register,deploy") for person in people]
    for person, command in zip(people, commands, strict=True):
        out, err = command.communicate(timeout=300)
        assert command.returncode == 0, f"{out}\n{err}"
        assert f"https://ftkit-{person.name}.eastus" in out
    assert {job.name.partition("-")[0] for job in azure.jobs} == {"ann", "bob"} and len([*azure.jobs]) == 2
    for job in azure.jobs:
        tags, name = job.properties["tags"], job.name.partition("-")[0]
        assert (tags["ftkit-run"], tags["ftkit-owner"]) == (name, IDENTITIES[name])
    assert sorted(azure.costing()) == ["deployment ftkit-ann/blue", "deployment ftkit-bob/blue"]

    following = bob.started("stage=train", "sft.max_steps=60")
    read_until(following, "step  1/60")
    (job,) = azure.jobs.running()
    azure.jobs[job].pause()
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60)
    bobs = ["deployment ftkit-bob/blue", f"job {job}"]
    assert "ftkit-bob" not in succeeds(ann.ftkit("stage=teardown", "yes=true"))
    assert sorted(azure.costing()) == bobs
    named = ("run.name=bob", "deployment.endpoint_name=ftkit-bob")
    out = succeeds(ann.ftkit("stage=teardown", "yes=true", *named))
    assert (
        f"run bob of {names.COLLEAGUE}" in out and f"submitted by {names.COLLEAGUE}" in out and "left as it is" in out
    )
    assert sorted(azure.costing()) == bobs
    assert "stopped" in succeeds(bob.ftkit("stage=teardown", "yes=true"))
    assert azure.jobs[job].ended.wait(60), "it saves first"
    assert azure.costing() == [] and not azure.resources.children("onlineEndpoints")
