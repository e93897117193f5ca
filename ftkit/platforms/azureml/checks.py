"""What ``stage=plan check=true`` asks Azure: credential, workspace, VM sizes, quota, cluster, endpoint, prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml import endpoints
from ftkit.platforms.azureml.capacity import Capacity, Size, room
from ftkit.platforms.azureml.errors import is_forbidden
from ftkit.platforms.azureml.workspace import Workspace


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: is asked for.
        verdict: ``unknown`` where the identity may not look, or an earlier finding stands in the way.
        found: in words.
        cure: of what is wrong.
    """

    what: str
    verdict: Literal["ok", "wrong", "unknown"]
    found: str
    cure: str = ""


def check(workspace: Workspace, config: Config) -> list[Finding]:
    """Ask for everything that the configured stages will need; changes nothing."""
    signed_in = _finding("credential", lambda: workspace.token() and "accepted")
    if signed_in.verdict != "ok":
        return [signed_in]
    there = _finding("workspace", lambda: f"{workspace.name} in {workspace.described.location}")
    if there.verdict != "ok":
        return [signed_in, there]
    findings = [signed_in, there]
    capacity = Capacity(workspace)
    compute, deployment = config.compute, config.deployment
    if compute.platform == "azureml":
        if compute.cluster:
            findings.append(_finding("cluster", lambda: _cluster(workspace, config)))
        machines = (compute.instance_type or "", compute.nodes)
        findings += _machines("compute", capacity, *machines, spot=compute.spot)
    if deployment.platform == "azureml":
        findings += _machines("deployment", capacity, deployment.instance_type or "", deployment.instance_count)
        findings.append(_finding("endpoint", lambda: _endpoint(workspace, config)))
    return findings


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except StageError as error:
        if is_forbidden(error.__cause__):
            return Finding(what, "unknown", "the identity may not look", "the role Reader on the subscription")
        return Finding(what, "wrong", error.what, error.cure)


def _machines(what: str, capacity: Capacity, name: str, count: int, *, spot: bool = False) -> Iterator[Finding]:
    """VM size, quota and price of so many machines."""
    kind = "spot machines" if spot else "machines"
    found: list[Size] = []

    def size() -> str:
        found.append(capacity.size(name))
        return f"{count} × {found[0].name}, {found[0].cores} vCPUs each"

    yield _finding(f"{what}: VM size", size)
    if not found:
        return
    yield _quota(f"{what}: quota of {kind}", capacity, found[0], count, spot)
    price = found[0].usd_per_hour(spot)
    said = f"{price * count:,.2f} USD an hour, list price" if price is not None else "Azure lists none"
    yield Finding(f"{what}: price", "unknown" if price is None else "ok", said)


def _quota(what: str, capacity: Capacity, size: Size, count: int, spot: bool) -> Finding:
    needed = size.cores * count

    def look() -> str:
        quota = room(capacity, size, count, spot)
        if quota is None:
            return ""
        limit = "without limit" if quota.limit < 0 else f"of {quota.limit}"
        return f"{needed} vCPUs needed, {quota.used} {limit} in use in {quota.name}"

    finding = _finding(what, look)
    return finding if finding.found else Finding(what, "unknown", f"Azure lists none for {size.family}")


def _cluster(workspace: Workspace, config: Config) -> str:
    compute, name = config.compute, config.compute.cluster or ""
    with workspace.asking("look for the compute cluster", name):
        found: Any = workspace.client.compute.get(name)
    if str(found.size).lower() != (compute.instance_type or "").lower():
        raise StageError(
            f"{name} has machines of {found.size}, and compute.instance_type is {compute.instance_type}",
            cure=f"compute.instance_type={found.size}, or another cluster",
        )
    if found.max_instances < compute.nodes:
        raise StageError(
            f"{name} has at most {found.max_instances} nodes, and compute.nodes is {compute.nodes}",
            cure=f"compute.nodes={found.max_instances}, or az ml compute update --max-instances {compute.nodes}",
        )
    return f"{name}: at most {found.max_instances} × {found.size}"


def _endpoint(workspace: Workspace, config: Config) -> str:
    name = config.deployment.endpoint_name
    found = endpoints.find(workspace, name)
    if found is None:
        return f"{name} is free in this workspace"
    if found.auth_mode != config.deployment.auth_mode:
        raise StageError(
            f"{name} takes {found.auth_mode}, and deployment.auth_mode is {config.deployment.auth_mode}",
            cure=f"deployment.auth_mode={found.auth_mode}",
        )
    serving = found.serving
    return f"{name} serves {serving.model}" if serving else f"{name} is there, nothing serves"
