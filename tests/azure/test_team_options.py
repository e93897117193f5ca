"""Copies for a new version before its traffic, a job that finds no machine, tags: in the quick service."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick import Fault, Service
from quick.service import ENDED
from quick.user import ENDPOINT, fails

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.platforms.azureml.ownership import Mark, made_by_ftkit
from ftkit.platforms.azureml.submission import _identity

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_new_version_gets_copies_for_a_while_before_any_traffic(service: Service, user):
    ann = user()
    ann.deploy()
    began = service.now
    actor = ann.starts(lambda: ann.deploy("2", mirror_traffic=10, mirror_minutes=30.0))
    while not service.endpoints[ENDPOINT].mirror_traffic:
        actor.step()
    assert service.endpoints[ENDPOINT].mirror_traffic == {"green": 10}
    assert service.endpoints[ENDPOINT].traffic == {"blue": 100}
    while service.endpoints[ENDPOINT].mirror_traffic:
        actor.step()
    assert service.now - began > 1800 and service.endpoints[ENDPOINT].traffic == {"green": 10, "blue": 90}
    actor.finish()
    assert service.endpoints[ENDPOINT].traffic == {"green": 100} and not actor.error


@pytest.mark.parametrize("end", ["kill", "interrupt"])
def test_copies_end_with_a_rollout_that_ends_early(service: Service, user, end: str):
    """Guard: Rollout._undo and Rollout._clean look at copies too; a deployment that gets some cannot be deleted."""
    ann = user()
    ann.deploy()
    actor = ann.starts(lambda: ann.deploy("2", mirror_traffic=10, mirror_minutes=30.0))
    while not (endpoint := service.endpoints[ENDPOINT]).mirror_traffic or service.busy_with(ENDPOINT):
        actor.step()
        service.pass_time(1)
    getattr(actor, end)()
    actor.finish()
    if end == "kill":
        service.pass_time(100)
        ann.deploy()
    endpoint = service.endpoints[ENDPOINT]
    assert (endpoint.traffic, endpoint.mirror_traffic) == ({"blue": 100}, {})
    assert [name for _, name in service.deployments] == ["blue"]


def test_copies_that_somebody_has_set_are_not_taken_away(service: Service, user):
    ann = user()
    ann.deploy()
    service.by_hand(ENDPOINT, "canary", 0, mirror=5)
    error = fails(lambda: ann.deploy("2", mirror_traffic=10))
    assert "canary already" in error.what and "deployment.mirror_traffic=0" in error.cure
    assert service.endpoints[ENDPOINT].mirror_traffic == {"canary": 5}


def test_a_job_that_gets_no_machine_is_left_in_the_queue_and_taken_up_again(service: Service, user):
    """Guard: jobs._leaves_the_queue."""
    ann = user()
    service.faults.append(Fault("jobs.queue", "stuck"))
    error = fails(ann.train)
    assert "has waited for a machine for 24 hours" in error.what and "full price" not in error.what
    assert "stage=teardown" in error.cure and ann.heard("waits for a machine: 10 min so far")
    assert service.now > 24 * 3600
    (job,) = service.jobs.values()
    again = ann.starts(ann.train)
    while not ann.heard("is under way: following it"):
        again.step()
    assert len(service.jobs) == 1
    ann.teardown()
    again.finish()
    assert isinstance(again.error, StageError) and "was cancelled" in again.error.what and job.status in ENDED


def test_tags_of_a_team_stand_beside_ours_and_never_in_their_place():
    tags = Mark("jp", "ann@example.com", "r", {"cost-center": "a17"}).tags
    assert tags["cost-center"] == "a17" and made_by_ftkit(tags) and Mark("jp", "ann@example.com").owns(tags)


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tags={ftkit-run: x}", "ftkit sets itself"),
        ("tags={Made-By: x}", "ftkit sets itself"),
        ("deployment.mirror_traffic=51", "50"),
        ("deployment.public_network_access=private", "enabled"),
        ("deployment.user_assigned_identities=[me]", "resource id of a managed identity"),
    ],
)
def test_options_that_cannot_be_are_refused_by_plan(ftkit, override: str, says: str):
    done = ftkit("experiment=tiny-azure", "stage=plan", override)
    assert done.status == 2 and says in done.err + done.out and "nothing was started" in done.err + done.out


@pytest.mark.usefixtures("workspace_named")
def test_a_job_runs_with_the_identity_that_is_named(tmp_path: Path):
    plain = resolve(["experiment=tiny-azure", "stage=train"])
    named = resolve(["experiment=tiny-azure", "stage=train", "compute.identity_client_id=abc"])
    secret = resolve(["experiment=tiny-azure", "stage=train", "secrets.hf_token=HF-TOKEN"])
    assert _identity(plain) is None
    assert (given := _identity(named)) and given.client_id == "abc"
    assert (own := _identity(secret)) and own.client_id is None
