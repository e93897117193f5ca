"""Two people, any commands in any order and at once, killed, interrupted and answered wrongly: what must hold then.

More sequences than CI runs: FTKIT_SEQUENCES=5000 scripts/test tests/azure/test_state_machine.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from quick import Actor, Fault, Killed, Service
from quick.client import install
from quick.service import ENDED
from quick.user import ENDPOINT, User

from ftkit.errors import Interrupted, StageError
from ftkit.platforms.azureml.ownership import OWNER, RUN, made_by_ftkit

SEQUENCES = int(os.environ.get("FTKIT_SEQUENCES", "60"))
RUNS = {"ann": "jp", "bob": "other"}
CALLS = (
    *("jobs.create_or_update", "jobs.get", "jobs.list", "jobs.begin_cancel", "datastores.get_default"),
    *("blobs.list", "blobs.read", "blobs.lease", "endpoints.get", "endpoints.list", "endpoints.begin_create_or_update"),
    *("endpoints.begin_delete", "endpoints.get_keys", "deployments.get", "deployments.list", "deployments.get_logs"),
    *("deployments.begin_create_or_update", "deployments.begin_delete"),
    *("autoscale.get", "autoscale.put", "autoscale.delete"),
)
KINDS = ("refused", "lost", "cut", "forbidden", "expired", "conflict", "changed")
OPERATIONS = [call for call in CALLS if ".begin_" in call and not call.startswith("jobs.")]
who = st.sampled_from(sorted(RUNS))
version = st.sampled_from("12")


class TwoPeople(RuleBasedStateMachine):
    """Commands run in turns; each rule begins one, lets one go on, or lets something go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._patched = pytest.MonkeyPatch()
        self._folder = tempfile.TemporaryDirectory()
        self.service = Service()
        install(self.service, self._patched)
        self.users = {name: User(self.service, name, Path(self._folder.name, name), run) for name, run in RUNS.items()}
        self.commands: dict[str, Actor] = {}
        self.by_hand = 0
        self.scaled_by_hand: set[str] = set()
        self.agreed: set[str] = set()

    def teardown(self) -> None:
        try:
            self._let_all_end()
            self._check_the_end()
        finally:
            self._patched.undo()
            self._folder.cleanup()

    # What people do.

    def _begin(self, name: str, command) -> None:
        if (before := self.commands.get(name)) and not before.ended:
            return
        self.commands[name] = self.users[name].starts(command)

    @rule(name=who, of=st.sampled_from("ab"))
    def submits(self, name: str, of: str) -> None:
        self._begin(name, lambda: self.users[name].train(of + name))

    @rule(
        name=who, version=version, yes=st.booleans(), copies=st.sampled_from([0, 10]), most=st.sampled_from([None, 4])
    )
    def deploys(self, name: str, version: str, yes: bool, copies: int, most: int | None) -> None:
        self.agreed |= {name} if yes else set()
        settings = {"yes": yes, "mirror_traffic": copies, "max_instances": most}
        self._begin(name, lambda: self.users[name].deploy(version, **settings))

    @rule(name=who)
    def tears_down(self, name: str) -> None:
        self._begin(name, lambda: self.users[name].teardown())

    @rule(name=who, questions=st.sampled_from([1, 3, 10, 40, 400]))
    def goes_on(self, name: str, questions: int) -> None:
        if command := self.commands.get(name):
            for _ in range(questions):
                command.step()

    @rule(name=who)
    def interrupts(self, name: str) -> None:
        if command := self.commands.get(name):
            command.interrupt()

    @rule(name=who)
    def is_killed(self, name: str) -> None:
        if command := self.commands.get(name):
            command.kill()

    @precondition(lambda self: ENDPOINT in self.service.endpoints and self.by_hand < 2)
    @rule(share=st.sampled_from([0, 5, 20]), mirror=st.sampled_from([0, 5]))
    def somebody_deploys_by_hand(self, share: int, mirror: int) -> None:
        endpoint = self.service.endpoints[ENDPOINT]
        if self.service.busy_with(ENDPOINT) or endpoint.provisioning_state != "Succeeded":
            return
        share = share if endpoint.traffic else 0
        self.by_hand += 1
        self.service.by_hand(ENDPOINT, f"hand{self.by_hand}", share, mirror)

    @rule(deployment=st.sampled_from(["blue", "green"]))
    def somebody_scales_by_hand(self, deployment: str) -> None:
        there = [name for _, name in self.service.deployments]
        deployment = deployment if deployment in there or not there else there[0]
        if deployment not in self.service.scaling():  # Azure takes one for a deployment
            self.scaled_by_hand.add(self.service.scaled_by_hand(ENDPOINT, deployment))

    @rule(seconds=st.sampled_from([10, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.service.pass_time(seconds)

    @rule(call=st.sampled_from(CALLS), kind=st.sampled_from(KINDS), times=st.integers(1, 3))
    def a_call_goes_wrong(self, call: str, kind: str, times: int) -> None:
        self.service.faults.append(Fault(call, kind, times))

    @rule(call=st.sampled_from(OPERATIONS))
    def an_operation_never_ends(self, call: str) -> None:
        self.service.faults.append(Fault(call, "stuck"))

    @rule(call=st.sampled_from(OPERATIONS))
    def an_operation_is_said_to_have_failed_and_has_not(self, call: str) -> None:
        self.service.faults.append(Fault(call, "misreported"))

    @rule(what=st.sampled_from(["jobs.run", "deployments.start"]))
    def something_fails(self, what: str) -> None:
        self.service.faults.append(Fault(what, "failed"))

    # What holds at any time.

    @invariant()
    def nothing_is_trained_twice(self) -> None:
        assert all(count == 1 for count in self.service.trained.values()), self.service.trained
        work = [job.tags["ftkit-fingerprint"] for job in self.service.under_way()]
        assert len(work) == len(set(work)), "two jobs do the same work"

    @invariant()
    def commands_end_in_words(self) -> None:
        for command in self.commands.values():
            if command.ended and command.error:
                assert isinstance(command.error, StageError | Interrupted | KeyboardInterrupt | Killed), command.error

    @invariant()
    def what_is_others_is_deleted_only_if_agreed(self) -> None:
        for by, _, name, tags in self.service.deleted:
            assert made_by_ftkit(tags), f"{name} was made by hand"
            assert tags[OWNER] == f"{by}@example.com" or by in self.agreed, f"{by} has deleted {name} of {tags[OWNER]}"

    # What holds at the end.

    def _let_all_end(self) -> None:
        self.service.faults.clear()
        for _ in range(20_000):
            running = [command for command in self.commands.values() if not command.ended]
            if not running:
                return
            for command in running:
                command.step()
        raise AssertionError("commands do not end")

    def _check_the_end(self) -> None:
        self.nothing_is_trained_twice()
        self.commands_end_in_words()
        self.what_is_others_is_deleted_only_if_agreed()
        service, hands = self.service, {f"hand{number}" for number in range(1, self.by_hand + 1)}
        self._check_all_is_known(service)
        before = {name for _, name in service.deployments} & hands
        copied = dict(service.endpoints[ENDPOINT].mirror_traffic) if ENDPOINT in service.endpoints else {}
        copied = {to: part for to, part in copied.items() if to in hands}
        for user in (*self.users.values(), *self.users.values()):  # an endpoint goes once others' deployments have
            user.teardown()
        service.pass_time(100_000)
        assert not [job for job in service.jobs.values() if job.status not in ENDED]
        assert {name for _, name in service.deployments} == before == hands, "made by hand, and gone"
        assert service.scaled.keys() == self.scaled_by_hand, "rules without what they scale, or made by hand and gone"
        if hands:
            assert service.endpoints[ENDPOINT].mirror_traffic == copied
            assert sum(service.endpoints[ENDPOINT].traffic.values()) in (0, 100)
        else:
            assert not service.endpoints

    def _check_all_is_known(self, service: Service) -> None:
        """Whatever runs and was made by ftkit is listed by the teardown of the run that it is of."""
        listed = {name: "\n".join(user.running()) for name, user in self.users.items()}
        for job in service.under_way():
            assert job.name in listed[job.tags[OWNER].partition("@")[0]]
        for (endpoint, name), deployment in service.deployments.items():
            if made_by_ftkit(deployment.tags):
                owner = deployment.tags[OWNER].partition("@")[0]
                assert deployment.tags[RUN] == RUNS[owner]
                assert f"endpoint {endpoint}: " in listed[owner] and f"{name} serves " in listed[owner]
        for name, setting in service.scaled.items():
            if made_by_ftkit(tags := setting.get("tags", {})):
                deployment = setting["properties"]["targetResourceUri"].rpartition("/")[2]
                known = listed[tags[OWNER].partition("@")[0]]
                assert f"autoscale setting {name}: " in known or f"{deployment} serves " in known


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(0)
def test_any_sequence_of_commands_and_faults() -> None:
    run_state_machine_as_test(
        TwoPeople,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=30,
            deadline=None,
            derandomize="FTKIT_SEQUENCES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
