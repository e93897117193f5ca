"""Managed online endpoints: how one stands, what changes it, and where it takes requests. ``rollout`` deploys to it.

What ftkit has made is known by its tags. The endpoint's own tag names the deployment that was last taken into service:
whatever else is there was left by a command that was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.ai.ml.entities import ManagedOnlineEndpoint
from azure.core.exceptions import HttpResponseError

from ftkit.config.groups import Deployment as Settings
from ftkit.errors import StageError
from ftkit.platforms import Running, Say, Target
from ftkit.platforms.azureml.capacity import Capacity
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.workspace import Workspace

MADE_BY = {"made-by": "ftkit"}
SERVING, MODEL, DIGEST, SERVER = "ftkit-serving", "ftkit-model", "ftkit-digest", "ftkit-server"
"""Tags: of the endpoint, the deployment in service; of a deployment, what it serves, of which settings, and how."""
CHAT_ROUTE = "/v1/chat/completions"
LINE_S = 60.0
"""Seconds between two lines about a wait."""
CONFLICT_S = 5.0
CONFLICT_LIMIT_S = 1800.0
"""How long a change waits for another one to end that is still under way."""


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
        tags: ours among them.
        deployments: by name.
    """

    name: str
    scoring_uri: str
    auth_mode: str
    traffic: Mapping[str, int]
    tags: Mapping[str, str]
    deployments: Mapping[str, Deployed]

    @property
    def serving(self) -> Deployed | None:
        """The deployment that was last taken into service."""
        return self.deployments.get(self.tags.get(SERVING, ""))

    def uri(self, server: str) -> str:
        """Where requests in a server's format go."""
        parts = urlsplit(self.scoring_uri)
        return f"{parts.scheme}://{parts.netloc}{CHAT_ROUTE}" if server == "vllm" else self.scoring_uri


def find(workspace: Workspace, name: str) -> Endpoint | None:
    """The endpoint of this name, if there is one.

    Raises:
        StageError: there is one that ftkit has not made.
    """
    client = workspace.client
    try:
        with workspace.asking("look for the endpoint", name):
            found: Any = client.online_endpoints.get(name)
            deployments: list[Any] = list(client.online_deployments.list(name))
    except StageError as error:
        if is_missing(error.__cause__):
            return None
        raise
    tags = dict(found.tags or {})
    if not tags.items() >= MADE_BY.items():
        raise StageError(
            f"there is an endpoint {name} that ftkit has not made",
            where=f"workspace {workspace.name}",
            cure="deployment.endpoint_name=<another name>",
        )
    traffic = {deployment: share for deployment, share in (found.traffic or {}).items() if share}
    by_name = {deployment.name: _deployed(deployment) for deployment in deployments}
    return Endpoint(name, str(found.scoring_uri), str(found.auth_mode), traffic, tags, by_name)


def _deployed(found: Any) -> Deployed:
    state = str(getattr(found.provisioning_state, "value", found.provisioning_state))
    return Deployed(found.name, state, dict(found.tags or {}), str(found.instance_type), int(found.instance_count or 1))


def create(workspace: Workspace, settings: Settings, say: Say) -> None:
    """Make the endpoint, with nothing behind it; that costs nothing."""
    wanted = ManagedOnlineEndpoint(name=settings.endpoint_name, auth_mode=settings.auth_mode, tags=dict(MADE_BY))
    change(
        workspace,
        lambda: workspace.client.online_endpoints.begin_create_or_update(wanted),
        ("make the endpoint", settings.endpoint_name),
        say,
    )


def share(workspace: Workspace, name: str, traffic: Mapping[str, int], say: Say, serving: str | None = None) -> None:
    """Split the traffic.

    Args:
        traffic: percent by deployment.
        serving: deployment that is in service from now on, empty for none; None leaves it as it is.
    """
    with workspace.asking("look at the endpoint", name):
        wanted: Any = workspace.client.online_endpoints.get(name)
    wanted.traffic, wanted.mirror_traffic = dict(traffic), {}
    if serving is not None:
        wanted.tags = {**(wanted.tags or {}), SERVING: serving}
    change(
        workspace,
        lambda: workspace.client.online_endpoints.begin_create_or_update(wanted),
        ("set the traffic of the endpoint", name),
        say,
    )


def delete_deployment(workspace: Workspace, endpoint: str, deployment: str, say: Say) -> None:
    """Delete a deployment that has no traffic, and wait until it costs nothing any more."""
    change(
        workspace,
        lambda: workspace.client.online_deployments.begin_delete(deployment, endpoint),
        ("delete the deployment", f"{endpoint}/{deployment}"),
        say,
    )


def delete_endpoint(workspace: Workspace, name: str, say: Say) -> None:
    """Delete an endpoint with all its deployments."""
    change(
        workspace,
        lambda: workspace.client.online_endpoints.begin_delete(name),
        ("delete the endpoint", name),
        say,
    )


def change(workspace: Workspace, begin: Callable[[], Any], doing: tuple[str, str], say: Say) -> Any:
    """Begin a change and wait until it is done; where another one is still under way, wait for that first.

    Args:
        begin: the SDK's call; returns its poller.
        doing: an infinitive and its object, for messages: ``("delete the endpoint", "tiny")``.
    """
    deadline = time.monotonic() + CONFLICT_LIMIT_S
    waiting = False
    while True:
        try:
            with workspace.asking(*doing):
                poller = begin()
            return wait(workspace, poller, doing, say)
        except StageError as error:
            if not _is_conflict(error.__cause__) or time.monotonic() > deadline:
                raise
        if not waiting:
            say(f"waiting to {' '.join(doing)}: something else is still being done to it")
        waiting = True
        time.sleep(CONFLICT_S)


def wait(workspace: Workspace, poller: Any, doing: tuple[str, str], say: Say) -> Any:
    """Wait for a poller of the SDK, with a line every minute; its result."""
    began = time.monotonic()
    while True:
        with workspace.asking(*doing):
            poller.wait(LINE_S)
            if poller.done():
                return poller.result()
        say(f"still waiting to {' '.join(doing)}: {(time.monotonic() - began) / 60:.0f} min so far")


def _is_conflict(error: BaseException | None) -> bool:
    return isinstance(error, HttpResponseError) and error.status_code == 409


def credential(workspace: Workspace, name: str) -> str:
    """The endpoint's key or a token for it; for requests alone, never to be kept or shown."""
    with workspace.asking("get the key or a token of the endpoint", name):
        found: Any = workspace.client.online_endpoints.get_keys(name)
    return getattr(found, "primary_key", None) or found.access_token


def serves(workspace: Workspace, deployed: Mapping[str, Any]) -> bool:
    """Whether a deployment, as a record has it, still takes all the traffic."""
    endpoint = find(workspace, deployed["endpoint_name"])
    if endpoint is None or endpoint.traffic != {deployed["deployment_name"]: 100}:
        return False
    found = endpoint.deployments.get(deployed["deployment_name"])
    return found is not None and found.state == "Succeeded" and found.tags.get(DIGEST) == deployed["digest"]


def target(workspace: Workspace, settings: Settings) -> Target | None:
    """Where the endpoint takes requests; None if nothing behind it does."""
    endpoint = find(workspace, settings.endpoint_name)
    if endpoint is None or not endpoint.traffic:
        return None
    most = max(endpoint.traffic, key=lambda name: endpoint.traffic[name])
    server = endpoint.deployments[most].tags.get(SERVER, "score")
    return Target(endpoint.uri(server), server, credential(workspace, endpoint.name))


def running(workspace: Workspace, settings: Settings) -> list[Running]:
    """The endpoint with all that is behind it, and what that costs."""
    endpoint = find(workspace, settings.endpoint_name)
    if endpoint is None:
        return []
    behind = [
        f"{deployed.name} serves {deployed.model} with {endpoint.traffic.get(deployed.name, 0)} % of the traffic "
        f"on {deployed.machines}"
        for deployed in endpoint.deployments.values()
    ]
    what = f"endpoint {endpoint.name}: {'; '.join(behind) or 'nothing behind it'}"
    price = usd_per_hour(Capacity(workspace), list(endpoint.deployments.values()))
    return [Running(what, price, lambda: delete_endpoint(workspace, endpoint.name, lambda line: None))]


def usd_per_hour(capacity: Capacity, deployments: list[Deployed]) -> float | None:
    """List price of all machines behind deployments; None if it is not known of one of them."""
    try:
        prices = [(capacity.size(deployed.size).usd_per_hour(), deployed.count) for deployed in deployments]
    except StageError:
        return None
    return None if any(price is None for price, _ in prices) else sum((price or 0) * count for price, count in prices)
