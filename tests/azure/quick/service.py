"""Jobs, endpoints, deployments, blobs and leases in memory, the states that they go through, and faults of calls."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceResponseError

from ftkit.records import Record
from quick import actors

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
ENDED = ("Completed", "Failed", "Canceled")
PENDING_S = {"job": 300.0, "deployment": 600.0, "change": 30.0}
QUEUED_S = 60.0
"""How long things take, and how much of it a job waits for its machine."""


class Refused(HttpResponseError):
    """An answer of the service that is not 2xx."""

    def __init__(self, status: int, message: str):
        super().__init__(message=message)
        self.status_code = status


class SignedOut(ClientAuthenticationError, Refused):
    """The SDK's error for a 401."""


@dataclass
class Fault:
    """A call that goes wrong.

    Attributes:
        call: ``jobs.create_or_update``, ``deployments.begin_delete``, ``blobs.read``…
        kind: ``refused`` (500, nothing is done), ``lost`` (it is done, and answered 500), ``cut``, ``forbidden``,
            ``expired`` (401), ``conflict``, ``changed`` (412), ``stuck`` (its operation never ends), ``misreported``
            (its operation is said to have failed, and has done what it is for), ``failed`` and ``no room`` (it fails).
        times: how often.
        after: calls that are let through first.
    """

    call: str
    kind: str
    times: int = 1
    met: int = 0
    after: int = 0

    def take(self, call: str) -> bool:
        if self.call != call or self.met == self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.met += 1
        return True


@dataclass
class Operation:
    """Something that ends at a time; ``end`` brings about what it is for."""

    on: str
    at: float
    end: Callable[[], None]
    failure: str = ""
    stuck: bool = False
    ended: bool = False


class Poller:
    """As the SDK's."""

    def __init__(self, service: Service, operation: Operation):
        self._service, self._operation = service, operation

    def wait(self, seconds: float) -> None:
        left = max(0.0, self._operation.at - self._service.now)
        self._service.pass_time(seconds if self._operation.stuck else min(seconds, left))

    def done(self) -> bool:
        self._service.settle()
        return self._operation.ended and not self._operation.stuck

    def result(self) -> Any:
        if self._operation.failure:
            raise Refused(400, self._operation.failure)
        return None


@dataclass
class Service:
    """All that clients of a workspace share.

    Attributes:
        now: seconds since the beginning.
        scaled: autoscale settings by name, as they were sent.
        usages: quota, as Azure lists it; none is no limit.
        trained: how often each fingerprint has been trained to the end.
        deleted: deployments that were deleted: by whom, endpoint, name, tags.
    """

    now: float = 0.0
    jobs: dict[str, Any] = field(default_factory=dict)
    endpoints: dict[str, Any] = field(default_factory=dict)
    deployments: dict[tuple[str, str], Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    leases: dict[str, tuple[str, actors.Actor | None, float]] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    scaled: dict[str, Any] = field(default_factory=dict)
    usages: list[Any] = field(default_factory=list)
    trained: Counter[str] = field(default_factory=Counter)
    deleted: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    # Time, and what comes about in it.

    def pass_time(self, seconds: float) -> None:
        self.now += max(0.0, seconds)
        self.settle()

    def pause(self, seconds: float) -> None:
        """Stands for sleeping: others have their turn meanwhile."""
        actors.point()
        self.pass_time(seconds)

    def settle(self) -> None:
        for operation in sorted(self.operations, key=lambda each: each.at):
            if not operation.ended and operation.at <= self.now:
                operation.ended = True
                operation.end()
        self.operations = [each for each in self.operations if not each.ended]

    def begin(self, call: str, on: str, takes: str, end: Callable[[], None], failure: str = "") -> Poller:
        if self._fault(call, "misreported"):
            failure = "InternalServerError: the operation failed."
        operation = Operation(on, self.now + PENDING_S[takes], end, failure)
        operation.stuck = self._fault(call, "stuck")
        self.operations.append(operation)
        return Poller(self, operation)

    def busy_with(self, endpoint: str) -> bool:
        return any(each.on == endpoint and not each.ended for each in self.operations)

    # Calls.

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Around what a call does: settles what is due, and meets the faults."""
        self.settle()
        self.calls.append(name)
        for kind, error in (
            ("refused", Refused(500, "Internal error.")),
            ("cut", ServiceResponseError("Connection aborted.")),
            ("forbidden", Refused(403, "This request is not authorized to perform this operation.")),
            ("expired", SignedOut(401, "The access token has expired.")),
            ("conflict", Refused(409, "Another operation on this resource is in progress.")),
            ("changed", Refused(412, "The resource was changed at the same time.")),
        ):
            if self._fault(name, kind):
                raise error
        yield
        if self._fault(name, "lost"):
            raise Refused(500, "Internal error.")

    def _fault(self, call: str, kind: str) -> bool:
        return any(fault.kind == kind and fault.take(call) for fault in self.faults)

    # What runs.

    def start_job(self, wanted: Any) -> Any:
        if found := self.jobs.get(wanted.name):
            return found
        found = SimpleNamespace(name=wanted.name, tags=dict(wanted.tags), status="Queued", code=wanted)
        self.jobs[wanted.name] = found
        if self._fault("jobs.queue", "stuck"):
            return found
        self.operations.append(Operation("", self.now + QUEUED_S, lambda: self._begin_job(found)))
        fails = self._fault("jobs.run", "failed")
        self.operations.append(Operation("", self.now + PENDING_S["job"], lambda: self._end_job(found, fails)))
        return found

    def _begin_job(self, job: Any) -> None:
        if job.status == "Queued":
            job.status = "Running"

    def _end_job(self, job: Any, fails: bool) -> None:
        if job.status in ENDED:
            return
        if fails:
            job.status = "Failed"
            return
        job.status = "Completed"
        self.trained[job.tags["ftkit-fingerprint"]] += 1
        store = job.tags["ftkit-store"].partition("/paths/")[2]
        for stage in job.tags["ftkit-stages"].split(","):
            made = {"folder": "train/adapter", "last_loss": 1.0, "global_step": 1}
            record = Record(
                stage, job.tags["ftkit-fingerprint"], {}, {}, {}, made, {}, 1.0, "2026-01-01T00:00:00+00:00"
            )
            self.blobs[f"{store}/{job.tags['ftkit-run']}/{stage}/record.json"] = json.dumps(asdict(record)).encode()
            self.blobs[f"{store}/{job.tags['ftkit-run']}/{stage}/metrics.jsonl"] = b"{}\n"

    def under_way(self) -> list[Any]:
        self.settle()
        return [job for job in self.jobs.values() if job.status not in ENDED]

    def lease_holder(self, path: str) -> str | None:
        """Who holds a lease; one of a killed command ends a minute after that."""
        found = self.leases.get(path)
        if found is None:
            return None
        lease, actor, _ = found
        if actor and actor.dead:
            self.leases[path] = (lease, None, self.now + 60)
            return lease
        if actor is None and self.now > self.leases[path][2]:
            del self.leases[path]
            return None
        return lease

    def by_hand(self, endpoint: str, name: str, share: int, mirror: int = 0) -> None:
        """What a person does in the portal: a deployment beside others, with a part of the traffic, or copies of it."""
        self.deployments[endpoint, name] = SimpleNamespace(
            name=name, tags={}, provisioning_state="Succeeded", instance_type="Standard_F4s_v2", instance_count=1
        )
        found = self.endpoints[endpoint]
        live = {to: part * (100 - share) // 100 for to, part in found.traffic.items() if part}
        if live:
            first = next(iter(live))
            live[first] += 100 - share - sum(live.values())
            found.traffic = {to: part for to, part in {**live, name: share}.items() if part}
        if mirror:
            found.mirror_traffic = {name: mirror}

    def scaled_by_hand(self, endpoint: str, deployment: str) -> str:
        """What a person does in the portal: an autoscale setting for a deployment, there or not; returns its name."""
        name = f"hand-{deployment}"
        self.scaled[name] = {
            "name": name,
            "properties": {
                "enabled": True,
                "targetResourceUri": f"{WORKSPACE}/onlineEndpoints/{endpoint}/deployments/{deployment}",
                "profiles": [{"capacity": {"minimum": "1", "maximum": "9", "default": "1"}}],
            },
        }
        return name

    def scaling(self) -> dict[str, tuple[int, int]]:
        """Fewest and most instances by deployment, of all settings."""
        found = {}
        for setting in self.scaled.values():
            capacity = setting["properties"]["profiles"][0]["capacity"]
            name = setting["properties"]["targetResourceUri"].rpartition("/")[2]
            found[name] = (int(capacity["minimum"]), int(capacity["maximum"]))
        return found

    def copy(self, value: Any) -> Any:
        return copy.deepcopy(value)
