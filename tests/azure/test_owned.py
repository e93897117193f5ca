"""deploy and teardown touch only what their own run has made; two at once take turns; waits have an end."""

from __future__ import annotations

import pytest
from quick import Fault, Service
from quick.user import ENDPOINT, User, fails

from ftkit.errors import Interrupted, StageError
from ftkit.platforms.azureml import endpoints

pytestmark = pytest.mark.filterwarnings("ignore")


def traffic(service: Service) -> dict[str, int]:
    return service.endpoints[ENDPOINT].traffic


def behind(service: Service) -> list[str]:
    return sorted(name for _, name in service.deployments)


def together(*commands) -> None:
    """Let commands take turns, question by question."""
    while not all(command.ended for command in commands):
        for command in commands:
            command.step()


# By hand, and others'.


def test_a_split_and_copies_made_by_hand_stay_as_they_are(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 10, mirror=5)
    assert "blue already serves served:1 with 90 %" in ann.deploy()
    summary = ann.deploy("2")
    assert "green serves served:2 with 90 % of the traffic" in summary and "canary has 10 %" in summary
    assert traffic(service) == {"green": 90, "canary": 10} and behind(service) == ["canary", "green"]
    assert service.endpoints[ENDPOINT].mirror_traffic == {"canary": 5}
    assert not ann.heard("an earlier deploy was cut off") and ann.heard("left as it is: canary")


def test_a_deployment_by_hand_that_bears_our_next_colour_is_not_overwritten(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "green", 0)
    assert "red serves served:2" in ann.deploy("2")
    assert behind(service) == ["green", "red"]


def test_where_others_have_all_the_traffic_nothing_is_begun(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 100)
    error = fails(lambda: ann.deploy("2"))
    assert "nothing of the traffic of ftkit-tiny is left" in error.what and "deployment.endpoint_name" in error.cure
    assert behind(service) == ["blue", "canary"] and traffic(service) == {"canary": 100}


def test_a_failed_rollout_beside_others_gives_the_traffic_back_and_deletes_its_own_alone(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 20, mirror=5)
    service.faults.append(Fault("deployments.start", "failed"))
    fails(lambda: ann.deploy("2"))
    assert behind(service) == ["blue", "canary"] and traffic(service) == {"blue": 80, "canary": 20}
    assert service.endpoints[ENDPOINT].mirror_traffic == {"canary": 5}


def test_another_runs_live_version_is_replaced_only_if_one_agrees(service: Service, user):
    ann, bob = user("ann"), user("bob", "other")
    ann.deploy()
    error = fails(lambda: bob.deploy("2"))
    assert "live version of another run: blue serves served:1 with 100 %" in error.what
    assert "0.17 USD an hour; it is run jp of ann@example.com" in error.what and "yes=true" in error.cure
    assert behind(service) == ["blue"]
    assert "green serves served:2" in bob.deploy("2", yes=True)
    assert behind(service) == ["green"]


def test_teardown_leaves_another_runs_live_version(service: Service, user):
    ann, bob, carl = user("ann"), user("bob", "other"), user("carl", "third")
    ann.deploy()
    for other in (bob, carl):
        assert "nothing to do" in other.teardown()
        assert other.heard("run jp of ann@example.com") and other.heard("not of this run, and left as it is")
    bob.deploy("2", yes=True)
    ann.teardown()
    assert behind(service) == ["green"]
    bob.teardown()
    assert not service.endpoints


def test_teardown_beside_what_was_made_by_hand_leaves_that_with_the_traffic(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 10, mirror=5)
    ann.teardown()
    assert ann.heard("the endpoint stays, and all of its traffic then goes to what is left")
    assert behind(service) == ["canary"] and traffic(service) == {"canary": 100}
    assert service.endpoints[ENDPOINT].mirror_traffic == {"canary": 5}


def test_a_plan_names_what_others_have_behind_the_endpoint_and_whose_the_live_version_is(service: Service, user):
    ann, bob = user("ann"), user("bob", "other")
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 10, mirror=5)
    (seen,) = [found for found in ann.platform().preflight() if found.what == "endpoint"]
    by_hand = "canary has 10 % of the traffic and copies of 5 % of the requests on 1 × Standard_F4s_v2"
    assert seen.verdict == "ok" and "blue serves served:1 with 90 % of the traffic" in seen.found
    assert by_hand in seen.found and seen.found.count("not made by ftkit") == 1
    (seen,) = [found for found in bob.platform().preflight() if found.what == "endpoint"]
    assert seen.verdict == "wrong" and "run jp of ann@example.com" in seen.found and by_hand in seen.found
    assert "deploy would replace served:1, which is live" in seen.found and "yes=true" in seen.cure


# At the same time.


@pytest.mark.parametrize("first", [True, False], ids=["first deploy", "roll-out"])
def test_two_who_deploy_at_once_take_turns_and_the_second_is_told_for_whom(service: Service, user, first: bool):
    ann, bob = user("ann"), user("bob")
    if not first:
        ann.deploy("1")
    commands = ann.starts(lambda: ann.deploy("2", yes=True)), bob.starts(lambda: bob.deploy("3", yes=True))
    together(*commands)
    assert [command.error for command in commands] == [None, None]
    waited = ann if ann.heard("waiting: ") else bob
    assert waited.heard("waiting: ftkit-tiny is being changed by run jp of ")
    last = commands[0] if waited is ann else commands[1]
    (only,) = behind(service)
    assert str(last.result).startswith(
        f"{only} serves served:{2 if waited is ann else 3} with 100 % of the traffic at "
    )


def test_the_claim_of_a_killed_command_runs_out(service: Service, user):
    ann, bob = user("ann"), user("bob")
    killed = ann.starts(lambda: ann.deploy("1"))
    while not service.deployments:
        killed.step()
    killed.kill()
    assert "serves served:2 with 100 %" in bob.deploy("2", yes=True)
    assert bob.heard("waiting: ftkit-tiny is being changed by run jp of ann@example.com")
    assert len(behind(service)) == 2, "what ann's command has left is hers"
    ann.teardown()
    assert len(behind(service)) == 1


def test_what_was_changed_meanwhile_is_told_and_not_taken_for_served(service: Service, user):
    ann = user()
    command = ann.starts(lambda: ann.deploy("1"))
    while not ann.heard("100 % of the traffic, answers"):
        command.step()
    service.by_hand(ENDPOINT, "canary", 100)
    command.finish()
    assert isinstance(command.error, StageError)
    assert "changed by somebody else meanwhile: the endpoint ftkit-tiny now has" in command.error.what
    assert "canary has 100 %" in command.error.what


def test_an_undo_does_not_take_what_somebody_else_has_put_there_meanwhile(service: Service, user):
    ann = user()
    command = ann.starts(lambda: ann.deploy("1"))
    while not ann.heard("healthy, answers"):
        command.step()
    service.by_hand(ENDPOINT, "canary", 0)
    command.interrupt()
    command.finish()
    assert behind(service) == ["canary"] and ENDPOINT in service.endpoints


# Waits, conflicts, busy.


@pytest.mark.parametrize(
    "call", ["endpoints.begin_create_or_update", "deployments.begin_create_or_update", "deployments.begin_delete"]
)
@pytest.mark.parametrize("kind", ["stuck", "lost", "misreported", "conflict", "changed"])
def test_what_the_service_does_not_answer_rightly_is_seen_on_the_resource(service: Service, user, call: str, kind: str):
    ann = user()
    ann.deploy("1")
    service.faults.append(fault := Fault(call, kind))
    assert "green serves served:2 with 100 %" in ann.deploy("2")
    assert fault.met == 1 and behind(service) == ["green"]
    said = {"conflict": "Another operation on this resource", "changed": "The resource was changed at the same time"}
    assert kind not in said or ann.heard(said[kind])


def test_a_deployment_that_never_ends_has_an_end_and_is_deleted(service: Service, user, monkeypatch):
    ann = user()
    monkeypatch.setattr("quick.service.PENDING_S", {"deployment": 1e9, "change": 1.0})
    command = ann.starts(lambda: ann.deploy("1", startup_timeout_s=10))
    command.finish()
    assert isinstance(command.error, StageError) and "after 60 minutes it is still under way" in command.error.what
    assert not service.endpoints


def test_a_conflict_that_never_ends_is_given_up_in_the_services_words(service: Service, user):
    service.faults.append(Fault("endpoints.begin_create_or_update", "conflict", times=-1))
    error = fails(user().deploy)
    assert "Another operation on this resource is in progress" in error.what
    assert 1800 <= service.now < 3600


@pytest.mark.parametrize("kind", ["conflict", "changed"])
def test_an_old_version_that_cannot_be_deleted_is_told_with_its_price_and_goes_by_the_same_command(
    service: Service, user, kind: str
):
    ann = user()
    ann.deploy("1")
    service.faults.append(Fault("deployments.begin_delete", kind, times=-1))
    error = fails(lambda: ann.deploy("2"))
    left = "ftkit-tiny/blue (1 × Standard_F4s_v2, 0.17 USD an hour) may still run without traffic"
    assert f"the new version is in service, but {left}" in error.what and "the same command deletes it" in error.cure
    assert traffic(service) == {"green": 100} and behind(service) == ["blue", "green"]
    service.faults.clear()
    assert "green already serves served:2" in ann.deploy("2") and behind(service) == ["green"]


@pytest.mark.parametrize("first", [True, False], ids=["first deploy", "roll-out"])
@pytest.mark.parametrize(
    ("kind", "says"), [("no room", "the quota is too small"), ("failed", "the container did not get healthy")]
)
def test_what_does_not_start_is_undone_also_where_its_log_cannot_be_had(
    service: Service, user, kind: str, says: str, first: bool
):
    """``no room``: the quota was looked at before, and is gone by the time that the deployment starts."""
    ann = user()
    if not first:
        ann.deploy("1")
    service.faults += [Fault("deployments.start", kind), Fault("deployments.get_logs", "refused", times=-1)]
    error = fails(lambda: ann.deploy("2"))
    assert says in error.what and error.cure and "left: " not in error.what
    assert behind(service) == ([] if first else ["blue"]) and bool(service.endpoints) == (not first)
    assert first or traffic(service) == {"blue": 100}


@pytest.mark.parametrize("when", ["starting 1 ×", "healthy, answers", "10 % of the traffic"])
def test_an_endpoint_that_a_colleague_deletes_meanwhile_is_told_and_made_again(service: Service, user, when: str):
    ann = user()
    ann.deploy("1")
    command = ann.starts(lambda: ann.deploy("2"))
    while not any("green: " in line and when in line for line in ann.said):
        command.step()
    service.endpoints.clear()
    service.deployments.clear()
    command.finish()
    assert isinstance(command.error, StageError) and "left: " not in command.error.what
    assert not service.endpoints and not service.deployments
    assert "blue serves served:2 with 100 %" in ann.deploy("2")


def test_a_busy_live_version_can_be_replaced(service: Service, user):
    ann = user()
    ann.deploy("1")
    service.busy.add("blue")
    assert "green serves served:2 with 100 %" in ann.deploy("2")
    assert ann.heard("is busy with other requests, so it is alive")


def test_a_new_version_that_is_busy_before_it_has_traffic_is_not_taken_for_healthy(service: Service, user):
    service.busy.add("blue")
    assert "blue was asked a question: the endpoint is busy" in fails(user().deploy).what
    assert service.now < 600 + 600 and not service.endpoints


# Ends.


def test_teardown_tries_everything_and_lists_what_is_left_with_its_price(service: Service, user):
    ann = user()
    ann.deploy()
    actor = ann.starts(ann.train)
    while not service.jobs:
        actor.step()
    actor.kill()
    service.faults.append(Fault("jobs.begin_cancel", "refused", times=-1))
    error = fails(ann.teardown)
    assert "1 of 2 could not be stopped and may still cost money: job jp-" in error.what
    assert not service.endpoints, "the endpoint was stopped all the same"
    service.faults[:] = [Fault("endpoints.begin_delete", "forbidden", times=-1)]
    ann.deploy()
    error = fails(ann.teardown)
    assert "endpoint ftkit-tiny: blue serves served:1 with 100 %" in error.what and "0.17 USD an hour" in error.what
    assert not service.under_way(), "the job was stopped all the same"


def test_ctrl_c_twice_says_nothing_of_what_is_not_there(service: Service, user):
    ann = user()
    command = ann.starts(lambda: ann.deploy("1"))
    while not service.deployments:
        command.step()
    command.interrupt()
    while not ann.heard("putting things back"):
        command.step()
    command.interrupt()
    command.finish()
    assert isinstance(command.error, Interrupted | KeyboardInterrupt)
    assert "left:  " not in str(command.error)
    if service.deployments:
        assert "left: ftkit-tiny/blue" in str(command.error)


def test_traffic_that_names_a_deployment_which_is_gone_is_no_traceback(service: Service, user):
    ann = user()
    ann.deploy()
    service.deployments.clear()
    assert endpoints.target(ann.platform().workspace, ann.config().deployment) is None


def test_a_split_is_whole_numbers_that_add_up() -> None:
    found = endpoints.Endpoint("e", "", "key", {"a": 33, "hand": 67}, {}, {}, {})
    for percent in (1, 2, 10, 50, 99, 100):
        split = found.split("b", "a", percent)
        assert sum(split.values()) == 100 and split["hand"] == 67 and split["b"] >= 1
    assert endpoints.without({"a": 1, "b": 33, "c": 66}, ["a"]) == {"b": 33, "c": 67}


def test_a_first_deploy_of_each_of_two_runs_at_endpoints_of_their_own(service: Service, user, tmp_path):
    ann, bob = user("ann"), User(service, "bob", tmp_path / "bob", "other")
    ann.deploy()
    bob.deploy("2", endpoint_name="ftkit-other")
    ann.deploy("3", endpoint_name="ftkit-third")
    ann.teardown()
    assert list(service.endpoints) == ["ftkit-other"], "all of ann's, and nothing of bob's"
