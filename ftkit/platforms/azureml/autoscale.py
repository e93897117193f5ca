"""Autoscale settings of deployments: resources of Azure Monitor of their own, which outlive what they scale.

One that is left behind would scale the next deployment of the same name, so ftkit's own go before their deployment
does. Settings that ftkit has not made are told and left.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ftkit.config.groups import Deployment as Settings
from ftkit.errors import StageError
from ftkit.platforms.azureml import arm
from ftkit.platforms.azureml.changes import was_lost
from ftkit.platforms.azureml.errors import UNREGISTERED, code_of, is_forbidden, is_missing
from ftkit.platforms.azureml.ownership import Mark, made_by_ftkit, whose
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say

API_VERSION = "2022-10-01"
DIGEST = "ftkit-digest"
MOST_TAGS = 15
"""Azure Monitor's limit."""
PROFILE = "ftkit"
TARGET = re.compile(r"/onlineEndpoints/(?P<endpoint>[^/]+)/deployments/(?P<deployment>[^/]+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
    """An autoscale setting that is there.

    Attributes:
        endpoint, deployment: what it scales, which may be gone.
        tags: ours among them.
        least, most: instances, over all of its profiles.
        enabled: it acts.
    """

    name: str
    endpoint: str
    deployment: str
    tags: Mapping[str, str]
    least: int
    most: int
    enabled: bool

    def __str__(self) -> str:
        state = "" if self.enabled else ", switched off"
        by = "" if made_by_ftkit(self.tags) else f" by the setting {self.name}, {whose(self.tags)}"
        return f"autoscale from {self.least} to {self.most} instances{by}{state}"


def settings_of(workspace: Workspace, endpoint: str = "", deployments: Collection[str] = ()) -> list[Setting]:
    """Settings of the resource group for deployments of the workspace.

    Args:
        endpoint: of this one alone; empty for all.
        deployments: of these alone; empty for all.

    Raises:
        StageError: the service does not answer, or the identity may not look.
    """
    doing = ("look for autoscale settings of", endpoint or workspace.name)
    found = (_setting(each, workspace) for each in arm.listed(workspace, doing, _collection(workspace), API_VERSION))
    named = {deployment.lower() for deployment in deployments}
    return [
        setting
        for setting in found
        if setting
        and endpoint.lower() in ("", setting.endpoint.lower())
        and (not named or setting.deployment.lower() in named)
    ]


def visible(workspace: Workspace, endpoint: str = "", deployments: Collection[str] = ()) -> list[Setting]:
    """As ``settings_of``; none where none can have been made: the identity may not look, or nobody uses the service."""
    try:
        return settings_of(workspace, endpoint, deployments)
    except StageError as error:
        if is_forbidden(error.__cause__) or is_missing(error.__cause__) or code_of(error) == UNREGISTERED:
            return []
        raise


def scaled_by_others(workspace: Workspace, settings: Settings) -> set[str]:
    """Names of the endpoint's deployments, there or gone, that have a setting which ftkit has not made.

    Raises:
        StageError: there is to be autoscale, and the settings cannot be looked at.
    """
    found: list[Setting] = []
    try:
        found = settings_of(workspace, settings.endpoint_name)
    except StageError:
        if settings.autoscale.on:
            raise
    return {setting.deployment for setting in found if not made_by_ftkit(setting.tags)}


def fits(workspace: Workspace, settings: Settings, deployment: str) -> bool:
    """Whether a deployment is scaled as the configuration says; one without autoscale is not asked about."""
    if not settings.autoscale.on:
        return True
    found = visible(workspace, settings.endpoint_name, [deployment])
    return any(_as_wanted(workspace, settings, deployment, setting) for setting in found)


def apply(workspace: Workspace, settings: Settings, deployment: str, mark: Mark, say: Say) -> str:
    """Give a deployment the rules of the configuration; where it has none, take away those that ftkit has made.

    Returns:
        How it is scaled now, for the user; empty where it is not.

    Raises:
        StageError: the setting could not be made, changed or deleted, or there is to be one and Azure does not answer.
    """
    endpoint = settings.endpoint_name
    if not settings.autoscale.on:
        try:
            found = visible(workspace, endpoint, [deployment])
        except StageError as error:  # without autoscale nobody needs Azure Monitor to answer
            say(f"{error.what}; whether {deployment} has any is not known")
            return ""
        return ", ".join(map(str, _removed(workspace, found, say)))
    found = settings_of(workspace, endpoint, [deployment])
    _refuse_others(workspace, found)
    if not any(_as_wanted(workspace, settings, deployment, setting) for setting in found):
        _put(workspace, settings, deployment, mark)
        say(f"{deployment}: {settings.autoscale.in_words(settings.instance_type, settings.instance_count)}")
    least, most = settings.autoscale.bounds(settings.instance_count)
    return f"autoscale from {least} to {most} instances"


def remove(workspace: Workspace, endpoint: str, deployments: Collection[str], say: Say) -> None:
    """Delete the settings of some deployments that ftkit has made, and tell of others.

    Args:
        deployments: names.

    Raises:
        StageError: one could not be deleted; the rest was.
    """
    _removed(workspace, visible(workspace, endpoint, deployments), say)


def _removed(workspace: Workspace, found: Collection[Setting], say: Say) -> list[Setting]:
    """Delete those of some settings that ftkit has made; return the others."""
    failed: list[StageError] = []
    others: list[Setting] = []
    for setting in found:
        if not made_by_ftkit(setting.tags):
            say(f"left as it is: {setting.deployment}'s {setting}")
            others.append(setting)
            continue
        try:
            delete(workspace, setting)
            say(f"{setting.deployment}: its autoscale setting is deleted")
        except StageError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return others


def delete(workspace: Workspace, setting: Setting) -> None:
    """Delete one setting; that it is gone already is as good."""
    doing = ("delete the autoscale setting", setting.name)
    try:
        arm.send(workspace, doing, "DELETE", _address(workspace, setting.name))
    except StageError as error:
        if not is_missing(error.__cause__) and not (was_lost(error) and _find(workspace, setting.name) is None):
            raise


def _refuse_others(workspace: Workspace, found: Collection[Setting]) -> None:
    """Raises StageError: a deployment has a setting that ftkit has not made."""
    for setting in found:
        if not made_by_ftkit(setting.tags):
            group = workspace.settings.resource_group
            raise StageError(
                f"{setting.deployment} has an autoscale setting already, {setting.name}, which ftkit has not made, and "
                "Azure takes one for a deployment",
                where=f"endpoint {setting.endpoint}",
                cure="deployment.autoscale.max_instances=null leaves it; "
                f"az monitor autoscale delete --resource-group {group} --name {setting.name} deletes it",
            )


def _put(workspace: Workspace, settings: Settings, deployment: str, mark: Mark) -> None:
    name, properties = (
        _name(workspace, settings.endpoint_name, deployment),
        _properties(workspace, settings, deployment),
    )
    tags = {**mark.tags, DIGEST: _digest(properties)}
    body = {
        "location": workspace.described.location,
        "tags": dict(list(tags.items())[-MOST_TAGS:]),
        "properties": {**properties, "name": name},
    }
    doing = ("set the autoscale of", f"{settings.endpoint_name}/{deployment}")
    try:
        arm.send(workspace, doing, "PUT", _address(workspace, name), body)
    except StageError as error:
        found = _find(workspace, name) if was_lost(error) else None
        if not (found and _as_wanted(workspace, settings, deployment, found)):
            raise


def _find(workspace: Workspace, name: str) -> Setting | None:
    with suppress(StageError):
        return _setting(arm.send(workspace, ("look at", name), "GET", _address(workspace, name)), workspace)
    return None


def _as_wanted(workspace: Workspace, settings: Settings, deployment: str, found: Setting) -> bool:
    """What somebody has changed by hand keeps its tags, so the bounds are looked at as well."""
    same = found.tags.get(DIGEST) == _digest(_properties(workspace, settings, deployment))
    bounds = settings.autoscale.bounds(settings.instance_count)
    return made_by_ftkit(found.tags) and same and found.enabled and (found.least, found.most) == bounds


def _properties(workspace: Workspace, settings: Settings, deployment: str) -> dict[str, Any]:
    """The body of a setting, but for its name."""
    autoscale = settings.autoscale
    least, most = autoscale.bounds(settings.instance_count)
    target = f"{workspace.described.id}/onlineEndpoints/{settings.endpoint_name}/deployments/{deployment}"
    metric = autoscale.metric_of(settings.instance_type)
    rules = [
        {
            "metricTrigger": {
                "metricName": metric,
                "metricResourceUri": target,
                "timeGrain": "PT1M",
                "statistic": "Average",
                "timeWindow": f"PT{rule.time_window_minutes}M",
                "timeAggregation": "Average",
                "operator": operator,
                "threshold": threshold,
            },
            "scaleAction": {
                "direction": direction,
                "type": "ChangeCount",
                "value": str(rule.value),
                "cooldown": f"PT{rule.cooldown_minutes}M",
            },
        }
        for rule, threshold, operator, direction in (
            (autoscale.scale_out, autoscale.threshold_of("scale_out"), "GreaterThan", "Increase"),
            (autoscale.scale_in, autoscale.threshold_of("scale_in"), "LessThan", "Decrease"),
        )
    ]
    capacity = {"minimum": str(least), "maximum": str(most), "default": str(settings.instance_count)}
    return {
        "enabled": True,
        "targetResourceUri": target,
        "profiles": [{"name": PROFILE, "capacity": capacity, "rules": rules}],
    }


def _digest(properties: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(properties, sort_keys=True).encode()).hexdigest()


def _setting(found: Mapping[str, Any], workspace: Workspace) -> Setting | None:
    """A setting as the service shows it; None if it scales something else than a deployment of the workspace."""
    properties = found.get("properties") or {}
    target = str(properties.get("targetResourceUri") or "")
    match = TARGET.search(target)
    if not match or target[: match.start()].lower() != str(workspace.described.id).lower():
        return None
    capacities = [profile["capacity"] for profile in properties.get("profiles") or ()]
    return Setting(
        str(found["name"]),
        match["endpoint"],
        match["deployment"],
        dict(found.get("tags") or {}),
        min((int(capacity["minimum"]) for capacity in capacities), default=0),
        max((int(capacity["maximum"]) for capacity in capacities), default=0),
        bool(properties.get("enabled")),
    )


def _name(workspace: Workspace, endpoint: str, deployment: str) -> str:
    """One for each deployment of a resource group, which all of its workspaces share."""
    return f"ftkit-{workspace.name}-{endpoint}-{deployment}"


def _collection(workspace: Workspace) -> str:
    settings = workspace.settings
    group = f"/subscriptions/{settings.subscription_id}/resourceGroups/{settings.resource_group}"
    return f"{group}/providers/Microsoft.Insights/autoscaleSettings"


def _address(workspace: Workspace, name: str) -> str:
    return arm.address_of(f"{_collection(workspace)}/{name}", API_VERSION)
