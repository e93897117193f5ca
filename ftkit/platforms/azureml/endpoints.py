"""Managed online endpoints: how one stands, what changes it, and where it takes requests. ``rollout`` deploys to it.

What ftkit has made is known by its tags, and whose it is as well. The endpoint's own tag names the deployment that was
last taken into service: whatever else is there of the same run was left by a command that was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration, ManagedOnlineEndpoint

from ftkit.config.groups import Deployment as Settings
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml import autoscale, changes
from ftkit.platforms.azureml.capacity import Capacity
from ftkit.platforms.azureml.changes import Change, State
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.ownership import Mark, made_by_ftkit, whose
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say, Target
from ftkit.serving.servers import SERVERS

SERVING, MODEL, DIGEST, SERVER = "ftkit-serving", "ftkit-model", "ftkit-digest", "ftkit-server"
"""Tags: of the endpoint, the deployment in service; of a deployment, what it serves, of which settings, and how."""
ENDED_STATES = {"Succeeded": State.DONE, "Failed": State.FAILED, "Canceled": State.FAILED}


@dataclass(frozen=True)
class Deployed:
    """One deployment of an endpoint.

    Attributes:
        state: the service's: ``Creating``, ``Succeeded``, ``Failed``…
        tags: ours among them.
        size, count: VMs behind it.
    """

    name: str
    state: str
    tags: Mapping[str, str]
    size: str
    count: int

    @property
    def model(self) -> str:
        return self.tags.get(MODEL, "an unknown model")

    @property
    def machines(self) -> str:
        return f"{self.count} × {self.size}"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as it stands.

    Attributes:
        scoring_uri: as the service gives it.
        auth_mode: ``key``, ``aad_token`` or ``aml_token``.
        traffic: percent by deployment, without those that have none.
        mirrored: percent of the requests that are copied to a deployment.
        tags: ours among them.
        deployments: by name.
        public_network_access: ``enabled``, or ``disabled`` where only a private endpoint of the workspace leads to it.
        identities: resource ids of those that it was given; none where it has one of its own.
    """

    name: str
    scoring_uri: str
    auth_mode: str
    traffic: Mapping[str, int]
    mirrored: Mapping[str, int]
    tags: Mapping[str, str]
    deployments: Mapping[str, Deployed]
    public_network_access: str = "enabled"
    identities: tuple[str, ...] = ()

    @property
    def serving(self) -> Deployed | None:
        """The deployment that ftkit last took into service."""
        found = self.deployments.get(self.tags.get(SERVING, ""))
        return found if found and made_by_ftkit(found.tags) else None

    def beside(self, *names: str) -> list[Deployed]:
        """All deployments but some."""
        return [deployed for name, deployed in self.deployments.items() if name not in names]

    def share_of(self, *names: str) -> int:
        """Percent of the traffic that is not others' than these deployments'; all of it where nobody has any."""
        return 100 - sum(share for name, share in self.traffic.items() if name not in names)

    def split(self, new: str, old: str, percent: int) -> dict[str, int]:
        """The traffic with ``percent`` of what these two have for ``new``, the rest for ``old``; others keep theirs.

        Args:
            old: empty for none.
        """
        ours = self.share_of(new, old)
        part = ours if percent == 100 or not old else min(ours, max(1, round(ours * percent / 100)))
        kept = {name: share for name, share in self.traffic.items() if name not in (new, old)}
        return {name: share for name, share in {new: part, old: ours - part, **kept}.items() if name and share}

    def described(self, deployed: Deployed) -> str:
        """One deployment, for the user."""
        share, mirror = self.traffic.get(deployed.name, 0), self.mirrored.get(deployed.name, 0)
        copies = f" and copies of {mirror} % of the requests" if mirror else ""
        return (
            f"{deployed.name} serves {deployed.model} with {share} % of the traffic{copies} on {deployed.machines}"
            if made_by_ftkit(deployed.tags)
            else f"{deployed.name} has {share} % of the traffic{copies} on {deployed.machines}, {whose(deployed.tags)}"
        )

    def described_with_owner(self, deployed: Deployed) -> str:
        """One deployment and whose it is, for the user."""
        by = f", {whose(deployed.tags)}" if made_by_ftkit(deployed.tags) else ""
        return self.described(deployed) + by

    def uri(self, server: str) -> str:
        """Where requests in a server's format go."""
        parts = urlsplit(self.scoring_uri)
        asked = SERVERS[server]
        return self.scoring_uri if asked.is_own else f"{parts.scheme}://{parts.netloc}{asked.route}"


def find(workspace: Workspace, name: str) -> Endpoint | None:
    """The endpoint of this name, if there is one.

    Raises:
        StageError: there is one that ftkit has not made.
    """
    found = look_at(workspace, name)
    if found and not made_by_ftkit(found.tags):
        raise StageError(
            f"there is an endpoint {name} that ftkit has not made",
            where=f"workspace {workspace.name}",
            cure="deployment.endpoint_name=<another name>",
        )
    return found


def look_at(workspace: Workspace, name: str) -> Endpoint | None:
    """The endpoint of this name with its deployments, whoever made it."""
    client = workspace.client
    try:
        with workspace.asking("look for the endpoint", name):
            found: Any = client.online_endpoints.get(name)
            deployments: list[Any] = list(client.online_deployments.list(name))
    except StageError as error:
        if is_missing(error.__cause__):
            return None
        raise
    by_name = {deployment.name: _deployed(deployment) for deployment in deployments}
    traffic, mirrored = (
        {k: v for k, v in (given or {}).items() if v} for given in (found.traffic, found.mirror_traffic)
    )
    return Endpoint(
        name,
        str(found.scoring_uri),
        str(found.auth_mode),
        traffic,
        mirrored,
        dict(found.tags or {}),
        by_name,
        _text(getattr(found, "public_network_access", None) or "enabled").lower(),
        _identities(getattr(found, "identity", None)),
    )


def _identities(found: Any) -> tuple[str, ...]:
    given = getattr(found, "user_assigned_identities", None) or ()
    return tuple(str(identity.resource_id) for identity in given if identity.resource_id)


def _shares(given: Mapping[str, int] | None) -> dict[str, int]:
    return {name: part for name, part in (given or {}).items() if part}


def _deployed(found: Any) -> Deployed:
    return Deployed(
        found.name, _state(found), dict(found.tags or {}), str(found.instance_type), int(found.instance_count or 1)
    )


def _state(found: Any) -> str:
    return _text(found.provisioning_state)


def _text(value: Any) -> str:
    """What a value of the SDK says: some are enumerations, the same in another answer texts."""
    return str(getattr(value, "value", value))


def check_kept(found: Endpoint, settings: Settings) -> None:
    """Raises StageError: the endpoint was made with another authentication, network or identity, which it keeps."""
    if found.auth_mode != settings.auth_mode:
        raise StageError(
            f"the endpoint {found.name} takes {found.auth_mode}, and deployment.auth_mode is now "
            f"{settings.auth_mode}; an endpoint keeps the one that it was made with",
            cure=f"deployment.auth_mode={found.auth_mode}, or stage=teardown first",
        )
    wanted = settings.public_network_access or "enabled"
    if found.public_network_access != wanted:
        raise StageError(
            f"the endpoint {found.name} was made with public_network_access={found.public_network_access}, and "
            f"deployment.public_network_access is now {wanted}",
            cure=f"deployment.public_network_access={found.public_network_access}, or stage=teardown first",
        )
    identities = {identity.lower() for identity in settings.user_assigned_identities}
    if identities != {identity.lower() for identity in found.identities}:
        own = ",".join(found.identities)
        raise StageError(
            f"the endpoint {found.name} has {own or 'an identity of its own'}, and "
            f"deployment.user_assigned_identities is now {list(settings.user_assigned_identities)}; "
            "an endpoint keeps the identity that it was made with",
            cure=f"deployment.user_assigned_identities=[{own}], or stage=teardown first",
        )


def create(workspace: Workspace, settings: Settings, mark: Mark, say: Say) -> None:
    """Make the endpoint, with nothing behind it; that costs nothing."""
    name = settings.endpoint_name
    identities = [ManagedIdentityConfiguration(resource_id=one) for one in settings.user_assigned_identities]
    wanted = ManagedOnlineEndpoint(
        name=name,
        auth_mode=settings.auth_mode,
        tags=mark.tags,
        public_network_access=settings.public_network_access and settings.public_network_access.capitalize(),
        identity=IdentityConfiguration(type="user_assigned", user_assigned_identities=identities)
        if identities
        else None,
    )

    def look() -> State:
        found = _endpoint(workspace, name)
        return ENDED_STATES.get(_state(found), State.UNDER_WAY) if found and mark.made(found.tags) else State.NOT_BEGUN

    begin = lambda: workspace.client.online_endpoints.begin_create_or_update(wanted)  # noqa: E731
    changes.make(workspace, Change(("make the endpoint", name), begin, look), say)


def share(
    workspace: Workspace,
    name: str,
    traffic: Mapping[str, int],
    say: Say,
    *,
    tags: Mapping[str, str] | None = None,
    gone: Collection[str] = (),
    copies: Mapping[str, int] | None = None,
) -> None:
    """Split the traffic; requests are copied to whom they were, but to those that go.

    Args:
        traffic: percent by deployment.
        tags: of the endpoint, set with the traffic.
        gone: deployments that are about to be deleted, or to get no copies any more.
        copies: percent of the requests that a deployment gets copies of, in place of those that are copied now.
    """
    with workspace.asking("look at the endpoint", name):
        wanted: Any = workspace.client.online_endpoints.get(name)
    wanted.traffic = dict(traffic)
    copied = copies if copies is not None else wanted.mirror_traffic or {}
    wanted.mirror_traffic = {to: part for to, part in copied.items() if part and to not in gone}
    wanted.tags = {**(wanted.tags or {}), **(tags or {})}

    def look() -> State:
        found = _endpoint(workspace, name)
        if found is None:
            return State.FAILED
        as_wanted = (
            _shares(found.traffic) == traffic
            and _shares(found.mirror_traffic) == wanted.mirror_traffic
            and dict(found.tags or {}).items() >= wanted.tags.items()
        )
        return ENDED_STATES.get(_state(found), State.UNDER_WAY) if as_wanted else State.NOT_BEGUN

    begin = lambda: workspace.client.online_endpoints.begin_create_or_update(wanted)  # noqa: E731
    changes.make(workspace, Change(("set the traffic of the endpoint", name), begin, look), say)


def delete_deployment(workspace: Workspace, endpoint: str, deployment: str, say: Say) -> None:
    """Delete a deployment that has no traffic, and wait until it costs nothing any more."""
    unscale(workspace, endpoint, [deployment], say)

    def look() -> State:
        found = deployment_of(workspace, endpoint, deployment)
        if found is None:
            return State.DONE
        return State.UNDER_WAY if found.state == "Deleting" else State.NOT_BEGUN

    begin = lambda: workspace.client.online_deployments.begin_delete(deployment, endpoint)  # noqa: E731
    changes.make(workspace, Change(("delete the deployment", f"{endpoint}/{deployment}"), begin, look), say)


def delete_endpoint(workspace: Workspace, name: str, say: Say) -> None:
    """Delete an endpoint with all its deployments."""

    def look() -> State:
        found = _endpoint(workspace, name)
        if found is None:
            return State.DONE
        return State.UNDER_WAY if _state(found) == "Deleting" else State.NOT_BEGUN

    begin = lambda: workspace.client.online_endpoints.begin_delete(name)  # noqa: E731
    changes.make(workspace, Change(("delete the endpoint", name), begin, look), say)


def unscale(workspace: Workspace, endpoint: str, deployments: Collection[str], say: Say) -> None:
    """Delete autoscale settings of ftkit's; they cost nothing, so one that stays keeps no machine running."""
    try:
        autoscale.remove(workspace, endpoint, deployments, say)
    except StageError as error:
        say(f"{error.what}; stage=teardown tries again")


def deployment_of(workspace: Workspace, endpoint: str, name: str) -> Deployed | None:
    """One deployment, if it is there."""
    return _there(
        workspace, f"{endpoint}/{name}", lambda: _deployed(workspace.client.online_deployments.get(name, endpoint))
    )


def _endpoint(workspace: Workspace, name: str) -> Any:
    return _there(workspace, name, lambda: workspace.client.online_endpoints.get(name))


def _there(workspace: Workspace, what: str, get: Callable[[], Any]) -> Any:
    try:
        with workspace.asking("look at", what):
            return get()
    except StageError as error:
        if is_missing(error.__cause__):
            return None
        raise


def credential(workspace: Workspace, name: str) -> str:
    """The endpoint's key or a token for it; for requests alone, never to be kept or shown."""
    with workspace.asking("get the key or a token of the endpoint", name):
        found: Any = workspace.client.online_endpoints.get_keys(name)
    return getattr(found, "primary_key", None) or found.access_token


def serves(workspace: Workspace, config: Config, deployed: Mapping[str, Any]) -> bool:
    """Whether a deployment, as a record has it, is in service, and nothing is left beside it by this run."""
    endpoint = find(workspace, deployed["endpoint_name"])
    found = endpoint and endpoint.serving
    if endpoint is None or found is None or found.name != deployed["deployment_name"]:
        return False
    mark = Mark(config.run.name, workspace.owner)
    left = [other for other in endpoint.beside(found.name) if mark.owns(other.tags)]
    same = found.state == "Succeeded" and found.tags.get(DIGEST) == deployed["digest"]
    ours = same and not left and found.name in endpoint.traffic
    return ours and autoscale.fits(workspace, config.deployment, found.name)


def target(workspace: Workspace, settings: Settings) -> Target | None:
    """Where the endpoint takes requests; None if nothing behind it does."""
    endpoint = find(workspace, settings.endpoint_name)
    there = [name for name in endpoint.traffic if name in endpoint.deployments] if endpoint else []
    if endpoint is None or not there:
        return None
    most = max(there, key=lambda name: endpoint.traffic[name])
    server = endpoint.deployments[most].tags.get(SERVER, "score")
    return Target(endpoint.uri(server), server, credential(workspace, endpoint.name))


def without(traffic: Mapping[str, int], gone: Collection[str]) -> dict[str, int]:
    """The traffic once some deployments have gone: others take theirs over, each in proportion to its own."""
    kept = {name: part for name, part in traffic.items() if name not in gone}
    if not (total := sum(kept.values())):
        return {}
    most = max(kept, key=lambda name: kept[name])
    grown = {name: part * 100 // total for name, part in kept.items()}
    return grown | {most: grown[most] + 100 - sum(grown.values())}


def usd_per_hour(capacity: Capacity, deployments: list[Deployed]) -> float | None:
    """List price of all machines behind deployments; None if it is not known of one of them."""
    try:
        prices = [(capacity.size(deployed.size).usd_per_hour(), deployed.count) for deployed in deployments]
    except StageError:
        return None
    return None if any(price is None for price, _ in prices) else sum((price or 0) * count for price, count in prices)
