"""stage=plan check=true: what Azure says of a configuration, every problem at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import Command, run_ftkit
from standin import StandIn

CHECK = ("stage=plan", "check=true")
H100 = "standardNCADSH100v5Family"


@pytest.fixture
def plan(azure: StandIn, tmp_path: Path):
    return lambda *arguments, **changed: run_ftkit(*CHECK, *arguments, cwd=tmp_path, **azure.environment | changed)


def verdicts(done: Command) -> dict[str, str]:
    """The table: verdict and text by what was asked for."""
    assert "Traceback" not in done.err
    _, _, table = done.out.partition("on Azure ML, now\n")
    rows = re.findall(r"^(\S.*?)  +(ok|WRONG|\?)  +(.*?)\s*$", table, re.MULTILINE)
    return {what: f"{verdict} {text}" for what, verdict, text in rows}


def test_all_is_well(azure: StandIn, plan):
    done = plan("compute.cluster=gpu-cluster", "compute.nodes=2")
    assert done.status == 0 and done.err == ""
    assert done.out.index("no problems") < done.out.index("on Azure ML, now")
    assert verdicts(done) == {
        "credential": "ok accepted",
        "workspace": "ok ws-test in eastus",
        "cluster": "ok gpu-cluster: at most 2 × Standard_NC40ads_H100_v5",
        "compute: VM size": "ok 2 × Standard_NC40ads_H100_v5, 40 vCPUs each",
        "compute: quota of machines": f"ok 80 vCPUs needed, 0 of 160 in use in {H100}",
        "compute: price": "ok 13.96 USD an hour, list price",
        "deployment: VM size": "ok 1 × Standard_NC40ads_H100_v5, 40 vCPUs each",
        "deployment: quota of machines": f"ok 40 vCPUs needed, 0 of 160 in use in {H100}",
        "deployment: price": "ok 6.98 USD an hour, list price",
        "endpoint": "ok gpt-oss-jp-reasoner is free in this workspace; whether another one in the region has it, "
        "only making it tells",
        "jobs": "ok none of run gpt-oss-20b-jp-reasoner is under way",
    }
    assert not azure.record.to("PUT") and not azure.record.to("DELETE")


def test_every_problem_comes_at_once_with_its_cure(azure: StandIn, plan):
    azure.quota.limits[H100] = 70
    mistyped = "deployment.instance_type=Standard_NC40_H100_v5"
    done = plan("compute.cluster=gpu-cluster", "compute.nodes=4", mistyped)
    found = verdicts(done)
    assert done.status == 1
    assert "3 of 9 checks failed: cluster, compute: quota of machines, deployment: VM size" in done.err
    assert "at most 2 nodes, and compute.nodes is 4" in found["cluster"] and "compute.nodes=2" in found["cluster"]
    assert "4 × Standard_NC40ads_H100_v5 takes 160 vCPUs" in found["compute: quota of machines"]
    assert "did you mean Standard_NC40ads_H100_v5?" in found["deployment: VM size"]


def test_spot_machines_have_a_quota_and_a_price_of_their_own(azure: StandIn, plan):
    azure.quota.limits["TotalLowPriorityCores"] = 100
    azure.quota.limits[H100] = 40
    found = verdicts(plan("compute=h100x2", "compute.spot=true"))
    assert found["compute: quota of spot machines"] == "ok 80 vCPUs needed, 0 of 100 in use in TotalLowPriorityCores"
    assert found["compute: price"] == "ok 4.20 USD an hour, list price"


def test_autoscale_is_asked_about_at_its_fewest_and_at_its_most_instances(azure: StandIn, plan):
    azure.quota.limits[H100] = 120
    done = plan("deployment.autoscale.max_instances=4")
    found = verdicts(done)
    assert "autoscale    1 to 4 instances; 1 more at GpuUtilizationPercentage over 80 % for 5 min" in done.out
    assert found["deployment: VM size"] == "ok 1 to 4 × Standard_NC40ads_H100_v5, 40 vCPUs each"
    assert done.status == 1 and "WRONG the quota is too small: 4 ×" in found["deployment: quota of machines"]
    assert found["deployment: price"] == "ok 6.98 USD an hour with 1, 27.92 with 4, list price"
    assert found["autoscale"].startswith("ok 1 to 4 instances; 1 more at GpuUtilizationPercentage")


@pytest.mark.parametrize(
    ("changed", "what", "cure"),
    [
        ({"AZURE_CLIENT_SECRET": "not-it"}, "credential", "az login"),
        ({"WORKSPACE_NAME": "other"}, "workspace", "az ml workspace list"),
        ({"SUBSCRIPTION_ID": "00000000-0000-0000-0000-000000000002"}, "workspace", "az account list"),
    ],
)
def test_what_stands_in_the_way_of_all_else_comes_alone(plan, changed: dict[str, str], what: str, cure: str):
    done = plan(**changed)
    found = verdicts(done)
    assert done.status == 1 and list(found)[-1] == what and "WRONG" in found[what] and cure in done.out


def test_what_the_identity_may_not_see_is_not_held_against_it(azure: StandIn, plan):
    azure.faults.forbidden("GET", "/usages")
    azure.faults.forbidden("GET", "/autoscaleSettings")
    done = plan("deployment.autoscale.max_instances=4")
    assert "1 of 11 checks failed: autoscale" in done.err, "without the right there are no rules"
    assert "? the identity may not look" in verdicts(done)["compute: quota of machines"]
    assert "Reader" in done.out and "Contributor has" in done.out


def test_on_one_machine_there_is_nothing_to_ask(tmp_path: Path):
    done = run_ftkit(*CHECK, "experiment=tiny", cwd=tmp_path, SUBSCRIPTION_ID="")
    assert done.status == 0 and "nothing to ask: compute and deployment are on this machine" in done.out


def test_a_plan_without_check_imports_no_azure(tmp_path: Path):
    code = (
        "import sys; from ftkit.__main__ import main\n"
        "try: main(['stage=plan'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name == 'azure' or name.startswith('azure.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
