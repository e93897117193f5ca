"""What a run has behind endpoints, with what that costs, and how it is stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml import autoscale
from ftkit.platforms.azureml.autoscale import Setting
from ftkit.platforms.azureml.capacity import Capacity
from ftkit.platforms.azureml.claims import claimed
from ftkit.platforms.azureml.endpoints import (
    SERVING,
    Deployed,
    Endpoint,
    delete_deployment,
    delete_endpoint,
    look_at,
    share,
    usd_per_hour,
    without,
)
from ftkit.platforms.azureml.ownership import Mark, made_by_ftkit, whose
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Running, Say


def running(workspace: Workspace, config: Config) -> list[Running]:
    """What this run has behind endpoints, with what that costs; and what others have behind the one it is to use."""
    mark, wanted = Mark(config.run.name, workspace.owner), str(config.deployment.endpoint_name)
    with workspace.asking("list the endpoints of", workspace.name):
        listed: list[Any] = list(workspace.client.online_endpoints.list())
    names = [str(found.name) for found in listed if made_by_ftkit(found.tags or {})]
    found = [endpoint for name in dict.fromkeys((wanted, *names)) if (endpoint := look_at(workspace, name))]
    scaled: list[Setting] = []
    with suppress(StageError):  # what costs money is listed and stopped even if Azure Monitor does not answer
        scaled = autoscale.visible(workspace)
    listed = [each for endpoint in found for each in _running(workspace, endpoint, mark, wanted, scaled)]
    return [*listed, *_left_behind(workspace, found, mark, scaled)]


def _left_behind(
    workspace: Workspace, found: Sequence[Endpoint], mark: Mark, scaled: Sequence[Setting]
) -> list[Running]:
    """Autoscale settings of this run whose deployment is gone."""
    there = {(endpoint.name.lower(), name.lower()) for endpoint in found for name in endpoint.deployments}
    return [
        Running(
            f"autoscale setting {setting.name}: its deployment {setting.endpoint}/{setting.deployment} is gone",
            0.0,
            partial(autoscale.delete, workspace, setting),
        )
        for setting in scaled
        if mark.owns(setting.tags) and (setting.endpoint.lower(), setting.deployment.lower()) not in there
    ]


def _running(
    workspace: Workspace, endpoint: Endpoint, mark: Mark, wanted: str, scaled: Collection[Setting]
) -> list[Running]:
    capacity = Capacity(workspace)
    own = [deployed for deployed in endpoint.deployments.values() if mark.owns(deployed.tags)]
    others = [deployed for deployed in endpoint.deployments.values() if deployed not in own]
    whole = mark.owns(endpoint.tags) and not others
    listed = []
    if own or whole:
        what = "; ".join(_described(endpoint, deployed, scaled) for deployed in own) or "nothing behind it"
        stays = "" if whole else "; the endpoint stays"
        if any(other.name in endpoint.traffic for other in others):
            stays += ", and all of its traffic then goes to what is left"

        def stop() -> None:
            stop_own(workspace, endpoint.name, mark)

        listed.append(Running(f"endpoint {endpoint.name}: {what}{stays}", usd_per_hour(capacity, own), stop))
    if own or endpoint.name == wanted:
        for other in others:
            what = f"endpoint {endpoint.name}: {_described(endpoint, other, scaled)}"
            by = f", {whose(other.tags)}" if made_by_ftkit(other.tags) else ""
            listed.append(Running(what + by, usd_per_hour(capacity, [other]), None))
    return listed


def _described(endpoint: Endpoint, deployed: Deployed, scaled: Collection[Setting]) -> str:
    """One deployment with its autoscale, for the user; a setting that ftkit has not made outlives it."""
    of = (endpoint.name.lower(), deployed.name.lower())
    found = [setting for setting in scaled if (setting.endpoint.lower(), setting.deployment.lower()) == of]
    return ", ".join((endpoint.described(deployed), *map(str, found)))


def stop_own(workspace: Workspace, name: str, mark: Mark) -> None:
    """Delete what a run has behind an endpoint, and the endpoint if it is the run's and nothing of others is behind it.

    Raises:
        StageError: something could not be deleted; the rest was.
    """
    silent: Say = lambda line: None  # noqa: E731
    with claimed(workspace, name, mark, silent):
        found = look_at(workspace, name)
        if found is None:
            return
        own = [deployed.name for deployed in found.deployments.values() if mark.owns(deployed.tags)]
        failed: list[StageError] = []
        try:
            if own:
                autoscale.remove(workspace, name, own, silent)
        except StageError as error:  # a setting that stays costs nothing, what it scales does
            failed.append(error)
        if mark.owns(found.tags) and len(own) == len(found.deployments):
            delete_endpoint(workspace, name, silent)
        else:
            _delete_own(workspace, found, own, silent)
        if failed:
            raise failed[0]


def _delete_own(workspace: Workspace, found: Endpoint, own: Collection[str], say: Say) -> None:
    if any(deployment in found.traffic or deployment in found.mirrored for deployment in own):
        tags = {SERVING: ""} if found.tags.get(SERVING) in own else {}
        share(workspace, found.name, without(found.traffic, own), say, tags=tags, gone=own)
    failed: list[StageError] = []
    for deployment in own:
        try:
            delete_deployment(workspace, found.name, deployment, say)
        except StageError as error:
            failed.append(error)
    if failed:
        raise failed[0]
