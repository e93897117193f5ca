"""Autoscale settings are made with what they scale and go with it; what others have set stays."""

from __future__ import annotations

import json

import pytest
from quick import Fault, Service
from quick.service import WORKSPACE
from quick.user import ENDPOINT, User, fails

from ftkit.config.resolve import resolve

pytestmark = pytest.mark.filterwarnings("ignore")
OURS = "ftkit-w-ftkit-tiny-"


@pytest.fixture
def ann(user) -> User:
    return user()


# Made with what it scales, and gone with it.


def test_what_is_in_service_gets_rules_and_says_so(service: Service, ann: User):
    assert "with 100 % of the traffic at https://" in (said := ann.deploy(max_instances=4))
    assert said.endswith(", autoscale from 1 to 4 instances")
    (setting,) = service.scaled.values()
    assert setting["name"] == f"{OURS}blue" and setting["location"] == "eastus"
    assert setting["tags"].items() >= {"made-by": "ftkit", "ftkit-run": "jp", "ftkit-owner": "ann@example.com"}.items()
    properties, target = setting["properties"], f"{WORKSPACE}/onlineEndpoints/{ENDPOINT}/deployments/blue"
    assert properties["targetResourceUri"] == target and properties["enabled"]
    (profile,) = properties["profiles"]
    assert profile["capacity"] == {"minimum": "1", "maximum": "4", "default": "1"}
    out, back = ({**rule["metricTrigger"], **rule["scaleAction"]} for rule in profile["rules"])
    assert (out["metricName"], out["operator"], out["threshold"]) == ("CpuUtilizationPercentage", "GreaterThan", 80)
    assert (out["timeWindow"], out["direction"], out["value"], out["cooldown"]) == ("PT5M", "Increase", "1", "PT20M")
    assert (back["operator"], back["threshold"], back["direction"]) == ("LessThan", 30, "Decrease")
    assert back["metricResourceUri"] == target
    assert ann.heard("blue: 1 to 4 instances; 1 more at CpuUtilizationPercentage over 80 % for 5 min")


def test_no_traffic_no_rules(service: Service, ann: User):
    actor = ann.starts(lambda: ann.deploy(max_instances=4))
    while not ann.heard("100 % of the traffic, answers"):
        assert not service.scaled
        actor.step()
    actor.finish()
    assert service.scaling() == {"blue": (1, 4)}


def test_a_rollout_takes_the_rules_of_the_old_version_with_it(service: Service, ann: User):
    ann.deploy(max_instances=4)
    ann.deploy("2", max_instances=6)
    assert service.scaling() == {"green": (1, 6)}
    ann.deploy("3")
    assert not service.scaled


@pytest.mark.parametrize("end", ["kill", "interrupt", "fault"])
def test_a_rollout_that_ends_early_leaves_the_rules_of_the_version_that_serves(service: Service, ann: User, end: str):
    ann.deploy(max_instances=4)
    if end == "fault":
        service.faults.append(Fault("deployments.start", "failed"))
    actor = ann.starts(lambda: ann.deploy("2", max_instances=6))
    while not actor.ended and not (end != "fault" and ann.heard("green: 10 %")):
        actor.step()
    if not actor.ended:
        getattr(actor, end)()
        actor.finish()
    assert isinstance(actor.error, BaseException) and service.scaling() == {"blue": (1, 4)}


def test_teardown_lists_and_removes_them(service: Service, ann: User):
    ann.deploy(max_instances=4)
    service.deployments[ENDPOINT, "blue"].instance_count = 3
    ann.teardown()
    assert ann.heard("100 % of the traffic on 3 × Standard_F4s_v2, autoscale from 1 to 4 instances, 0.51 USD an hour")
    assert not service.scaled and not service.endpoints


def test_beside_anothers_deployment_only_ones_own_rules_go(service: Service, user):
    ann, bob = user("ann"), user("bob", "other")
    ann.deploy(max_instances=4)
    bob.deploy("2", endpoint_name="ftkit-other", max_instances=3)
    service.by_hand(ENDPOINT, "canary", 10)
    ann.teardown()
    assert [*service.scaled] == ["ftkit-w-ftkit-other-blue"]


def test_the_new_version_starts_with_the_instances_that_load_has_brought_the_old_one_to(service: Service, ann: User):
    """Guard: Rollout._check_capacity: it gets all of the old one's requests at once."""
    ann.deploy(max_instances=4)
    service.deployments[ENDPOINT, "blue"].instance_count = 9
    assert "green serves" in ann.deploy("2", max_instances=4)
    assert service.deployments[ENDPOINT, "green"].instance_count == 4
    assert "green already serves" in ann.deploy("2", max_instances=4), "the number is load's, not the configuration's"
    ann.deploy("3")
    assert service.deployments[ENDPOINT, "blue"].instance_count == 1


def test_the_quotas_room_is_told_and_kept_to(service: Service, ann: User):
    ann.deploy(max_instances=9)
    service.deployments[ENDPOINT, "blue"].instance_count = 6
    service.usages = [{"id": "/usages/f", "name": {"value": "f"}, "currentValue": 24, "limit": 44}]
    ann.deploy("2", max_instances=9)
    assert ann.heard("autoscale will reach 4 of 9 instances: the quota has no room for more")
    assert service.deployments[ENDPOINT, "green"].instance_count == 4 and service.scaling() == {"green": (1, 9)}


# Changed without a new version.


def test_other_bounds_change_the_rules_and_start_no_machine(service: Service, ann: User):
    ann.deploy(max_instances=4)
    service.calls.clear()
    assert "blue already serves served:1" in (said := ann.deploy(max_instances=8)) and "from 1 to 8" in said
    assert service.scaling() == {"blue": (1, 8)} and "deployments.begin_create_or_update" not in service.calls
    service.calls.clear()
    ann.deploy(max_instances=8)
    assert "autoscale.put" not in service.calls
    assert "autoscale" not in ann.deploy() and not service.scaled


@pytest.mark.parametrize("change", ["gone", "off", "bounds"])
def test_rules_changed_by_hand_are_not_up_to_date(service: Service, ann: User, change: str):
    ann.deploy(max_instances=4)
    platform = ann.platform(max_instances=4)
    record = {"endpoint_name": ENDPOINT, "deployment_name": "blue"}
    record["digest"] = service.deployments[ENDPOINT, "blue"].tags["ftkit-digest"]
    assert platform.serves(record)
    setting = service.scaled[f"{OURS}blue"]["properties"]
    if change == "gone":
        service.scaled.clear()
    elif change == "off":
        setting["enabled"] = False
    else:
        setting["profiles"][0]["capacity"]["maximum"] = "20"
    assert not platform.serves(record)
    ann.deploy(max_instances=4)
    assert platform.serves(record) and service.scaling() == {"blue": (1, 4)}


# Others'.


def test_a_setting_by_hand_is_left_and_told(service: Service, ann: User):
    ann.deploy()
    name = service.scaled_by_hand(ENDPOINT, "blue")
    before = json.dumps(service.scaled)
    assert f"autoscale from 1 to 9 instances by the setting {name}, not made by ftkit" in ann.deploy()
    error = fails(lambda: ann.deploy(max_instances=4))
    assert f"an autoscale setting already, {name}, which ftkit has not made" in error.what
    assert "blue is in service" in error.what and f"--name {name}" in error.cure
    ann.teardown()
    assert ann.heard(f"by the setting {name}, not made by ftkit") and json.dumps(service.scaled) == before


def test_a_new_version_takes_no_name_that_a_setting_by_hand_waits_for(service: Service, ann: User):
    ann.deploy()
    service.scaled_by_hand(ENDPOINT, "green")
    assert "red serves served:2" in ann.deploy("2")


def test_settings_of_other_resources_are_none_of_ours(service: Service, ann: User):
    service.scaled_by_hand(ENDPOINT, "blue")
    target = f"{WORKSPACE}x/onlineEndpoints/{ENDPOINT}/deployments/blue"
    service.scaled["hand-blue"]["properties"]["targetResourceUri"] = target
    assert "blue serves" in ann.deploy(max_instances=2)


# What goes wrong.


@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_an_answer_that_is_lost_is_looked_for(service: Service, ann: User, kind: str):
    service.faults.append(fault := Fault("autoscale.put", kind))
    if kind == "lost":
        assert "autoscale from 1 to 4" in ann.deploy(max_instances=4)
    else:
        error = fails(lambda: ann.deploy(max_instances=4))
        assert "blue is in service, and its autoscale is not as configured" in error.what
    assert fault.met == 1 and "autoscale from 1 to 4" in ann.deploy(max_instances=4)


def test_without_the_right_nothing_is_begun(service: Service, ann: User):
    service.faults.append(Fault("autoscale.get", "forbidden", times=-1))
    error = fails(lambda: ann.deploy(max_instances=4))
    assert "look for autoscale settings of ftkit-tiny" in error.what and not service.endpoints
    assert "blue serves" in ann.deploy(), "without autoscale nobody needs it"
    ann.teardown()
    assert not service.endpoints


def test_without_autoscale_azure_monitor_need_not_answer(service: Service, ann: User):
    service.faults.append(Fault("autoscale.get", "refused", times=-1))
    ann.deploy()
    assert "green serves served:2" in ann.deploy("2") and ann.heard("whether green has any is not known")
    assert [name for _, name in service.deployments] == ["green"]


def test_where_rules_cannot_be_made_the_version_stays_in_service_and_the_old_one_goes(service: Service, ann: User):
    ann.deploy()
    service.faults.append(Fault("autoscale.put", "forbidden", times=-1))
    error = fails(lambda: ann.deploy("2", max_instances=4))
    assert "green is in service, and its autoscale is not as configured" in error.what
    assert [name for _, name in service.deployments] == ["green"]
    service.faults.clear()
    assert "green already serves served:2" in ann.deploy("2", max_instances=4)
    assert service.scaling() == {"green": (1, 4)}


def test_azure_monitor_out_of_order_keeps_no_machine_running(service: Service, ann: User, user):
    ann.deploy(max_instances=4)
    service.faults.append(Fault("autoscale.get", "refused", times=-1))
    assert "autoscale" in fails(ann.teardown).what and not service.deployments
    service.faults.clear()
    assert not user("bob", "other").running()
    ann.teardown()
    assert ann.heard(f"autoscale setting {OURS}blue: its deployment ftkit-tiny/blue is gone") and not service.scaled


def test_what_was_left_behind_does_not_scale_the_next_version(service: Service, ann: User):
    ann.deploy(max_instances=4)
    left = service.copy(service.scaled)
    ann.teardown()
    service.scaled.update(left)
    actor = ann.starts(ann.deploy)
    while not service.deployments:
        actor.step()
    assert not service.scaled
    actor.finish()
    assert "autoscale" not in str(actor.result)


@pytest.mark.usefixtures("workspace_named")
def test_latency_with_thresholds_and_a_gpu_where_no_metric_is_named():
    latency = ("metric_name=RequestLatency_P90", "scale_out.threshold=20000", "scale_in.threshold=5000")
    given = [f"deployment.autoscale.{override}" for override in ("max_instances=4", *latency)]
    deployment = resolve(["stage=deploy", *given]).deployment
    assert "RequestLatency_P90 over 20000 ms" in deployment.autoscale.in_words(deployment.instance_type, 1)
    deployment = resolve(["stage=deploy", given[0]]).deployment
    assert deployment.autoscale.metric_of(deployment.instance_type) == "GpuUtilizationPercentage"
