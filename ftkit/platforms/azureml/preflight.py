"""What ``stage=plan check=true`` asks Azure: credential, workspace, VM sizes, quota, cluster, endpoint, prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftkit.config.compute import AzureCompute
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml import autoscale, endpoints, known_jobs
from ftkit.platforms.azureml.capacity import Capacity, Size, machines_counted, room
from ftkit.platforms.azureml.errors import is_forbidden
from ftkit.platforms.azureml.ownership import Mark
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Finding


def check(workspace: Workspace, config: Config, run_folder: Path) -> list[Finding]:
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
    if isinstance(compute, AzureCompute):
        if compute.cluster:
            findings.append(_finding("cluster", lambda: _cluster(workspace, config)))
        machines = (compute.instance_type or "", compute.nodes)
        findings += _machines("compute", capacity, *machines, spot=compute.spot)
    if deployment.managed:
        size, bounds = deployment.instance_type or "", deployment.autoscale.bounds(deployment.instance_count)
        findings += _machines("deployment", capacity, size, bounds[1], least=bounds[0], reserve=True)
        findings.append(_finding("endpoint", lambda: _endpoint(workspace, config)))
        if deployment.autoscale.on:
            findings.append(_autoscale(workspace, config))
    if compute.has_jobs:
        findings.append(_finding("jobs", lambda: _jobs(workspace, config, run_folder)))
    return findings


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except StageError as error:
        if is_forbidden(error.__cause__):
            return Finding(what, "unknown", "the identity may not look", "the role Reader on the subscription")
        return Finding(what, "wrong", error.what, error.cure)


def _machines(
    what: str, capacity: Capacity, name: str, count: int, *, least: int = 0, spot: bool = False, reserve: bool = False
) -> Iterator[Finding]:
    """VM size, quota and price of so many machines.

    Args:
        least: how few they may be as well; 0 for no fewer.
    """
    kind = "spot machines" if spot else "machines"
    found: list[Size] = []

    def size() -> str:
        found.append(capacity.size(name))
        fewer = f"{least} to " if 0 < least < count else ""
        return f"{fewer}{count} × {found[0].name}, {found[0].cores} vCPUs each"

    yield _finding(f"{what}: VM size", size)
    if not found:
        return
    yield _quota(f"{what}: quota of {kind}", capacity, found[0], count, spot, reserve)
    price = found[0].usd_per_hour(spot)
    yield Finding(f"{what}: price", "unknown" if price is None else "ok", _priced(price, least, count))


def _priced(price: float | None, least: int, count: int) -> str:
    if price is None:
        return "Azure lists none"
    if 0 < least < count:
        return f"{price * least:,.2f} USD an hour with {least}, {price * count:,.2f} with {count}, list price"
    return f"{price * count:,.2f} USD an hour, list price"


def _quota(what: str, capacity: Capacity, size: Size, count: int, spot: bool, reserve: bool) -> Finding:
    needed = size.cores * (machines_counted(size, count) if reserve else count)
    kept = ", with what Azure keeps for upgrades," if needed > size.cores * count else ""

    def look() -> str:
        quota = room(capacity, size, count, spot, reserve=reserve)
        if quota is None:
            return ""
        limit = "without limit" if quota.limit < 0 else f"of {quota.limit}"
        return f"{needed} vCPUs needed{kept or ','} {quota.used} {limit} in use in {quota.name}"

    finding = _finding(what, look)
    return finding if finding.found else Finding(what, "unknown", f"Azure lists none for {size.family}")


def _cluster(workspace: Workspace, config: Config) -> str:
    compute = config.azure_compute
    name = compute.cluster or ""
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
        return f"{name} is free in this workspace; whether another one in the region has it, only making it tells"
    if found.auth_mode != config.deployment.auth_mode:
        raise StageError(
            f"{name} takes {found.auth_mode}, and deployment.auth_mode is {config.deployment.auth_mode}",
            cure=f"deployment.auth_mode={found.auth_mode}",
        )
    serving, mark = found.serving, Mark(config.run.name, workspace.owner)
    behind = [
        found.described(deployed) if mark.owns(deployed.tags) else found.described_with_owner(deployed)
        for deployed in found.deployments.values()
    ]
    said = f"{name}: {'; '.join(behind) or 'is there, nothing serves'}"
    if serving and not mark.owns(serving.tags):
        raise StageError(
            f"{said}; deploy would replace {serving.model}, which is live",
            cure="yes=true agrees to that; deployment.endpoint_name=<another name> leaves it",
        )
    return said


def _autoscale(workspace: Workspace, config: Config) -> Finding:
    """The settings that the endpoint's deployments have; that they can be made only making one tells."""
    deployment = config.deployment
    try:
        found = autoscale.settings_of(workspace, deployment.endpoint_name)
        wanted = deployment.autoscale.in_words(deployment.instance_type, deployment.instance_count)
        now = "; ".join(f"{setting.deployment} has {setting}" for setting in found)
        return Finding("autoscale", "ok", wanted + (f"; now {now}" if now else ""))
    except StageError as error:
        return Finding("autoscale", "wrong", error.what, error.cure)


def _jobs(workspace: Workspace, config: Config, run_folder: Path) -> str:
    """The jobs of this run that are under way, from any machine."""
    found = known_jobs.under_way(workspace, config.run.name, run_folder)
    listed = (f"{job.name} ({', '.join(job.stages)}, {job.status}, by {job.owner or '?'})" for job in found)
    return "; ".join(listed) or f"none of run {config.run.name} is under way"
