"""Azure Monitor's autoscale settings: held against what its REST reference asks of them; nothing is scaled by them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from standin import names
from standin.resources import Resource, Resources
from standin.web import Request, Response, Router, ServiceError, answer

API_VERSIONS = ("2022-10-01",)
COLLECTION = f"{names.GROUP_ID}/providers/Microsoft.Insights/autoscaleSettings"
METRICS = (
    *("CpuUtilizationPercentage", "CpuMemoryUtilizationPercentage", "DiskUtilization", "GpuUtilizationPercentage"),
    *("GpuMemoryUtilizationPercentage", "RequestsPerMinute"),
    *(f"RequestLatency_P{percentile}" for percentile in (50, 90, 95, 99)),
)
"""Those of a deployment; all come by the minute."""
OPERATORS = ("Equals", "NotEquals", "GreaterThan", "GreaterThanOrEqual", "LessThan", "LessThanOrEqual")
TRIGGER = {
    "metricName": METRICS,
    "metricResourceUri": str,
    "timeGrain": ("PT1M",),
    "statistic": ("Average", "Min", "Max", "Sum", "Count"),
    "timeWindow": (5, 720),
    "timeAggregation": ("Average", "Minimum", "Maximum", "Total", "Count", "Last"),
    "operator": OPERATORS,
    "threshold": (int, float),
}
ACTION = {
    "direction": ("None", "Increase", "Decrease"),
    "type": ("ChangeCount", "PercentChangeCount", "ExactCount"),
    "value": str,
    "cooldown": (1, 10080),
}
MOST_TAGS, MOST_RULES = 15, 10


class Monitor:
    """Settings by name, whole as they are shown; for tests to look at, and to put others' into."""

    def __init__(self, resources: Resources):
        self._resources, self._lock = resources, threading.Lock()
        self.settings: dict[str, Resource] = {}

    def routes(self, router: Router) -> None:
        router.add("GET", COLLECTION, self._list)
        router.add("GET", f"{COLLECTION}/{{name}}", self._get)
        router.add("PUT", f"{COLLECTION}/{{name}}", self._put)
        router.add("DELETE", f"{COLLECTION}/{{name}}", self._delete)

    def _list(self, request: Request) -> Response:
        _check_version(request)
        return answer({"value": list(self.settings.values())})

    def _get(self, request: Request, name: str) -> Response:
        if name not in self.settings:
            raise ServiceError(404, "ResourceNotFound", f"The autoscale setting {name} was not found.")
        return answer(self.settings[name])

    def _put(self, request: Request, name: str) -> Response:
        _check_version(request)
        body = request.json
        self._check(name, body)
        with self._lock:
            new = name not in self.settings
            shown = {"id": f"{COLLECTION}/{name}", "name": name, "type": "Microsoft.Insights/autoscaleSettings"}
            self.settings[name] = {**body, **shown}
        return answer(self.settings[name], 201 if new else 200)

    def _delete(self, request: Request, name: str) -> Response:
        with self._lock:
            return answer(status=200 if self.settings.pop(name, None) else 204)

    def _check(self, name: str, body: Mapping[str, Any]) -> None:
        """Raises ServiceError: the setting is not one that Azure Monitor takes."""
        properties = body["properties"]
        if body.get("location") != names.REGION or len(body.get("tags") or {}) > MOST_TAGS:
            raise ServiceError(400, "BadRequest", "location is wrong, or there are more than 15 tags.")
        target = self._deployment(properties.get("targetResourceUri"))
        for other, setting in self.settings.items():
            if other != name and setting["properties"]["targetResourceUri"].lower() == target:
                raise ServiceError(409, "Conflict", f"The resource has an autoscale setting already: {other}.")
        _check_keys(properties, {"name", "enabled", "targetResourceUri", "targetResourceLocation", "profiles"})
        for profile in properties["profiles"]:
            _check_keys(profile, {"name", "capacity", "rules"})
            _check_capacity(profile["capacity"])
            if len(profile["rules"]) > MOST_RULES:
                raise ServiceError(400, "BadRequest", "There are more than 10 rules.")
            for rule in profile["rules"]:
                _check_part(rule["metricTrigger"], TRIGGER)
                _check_part(rule["scaleAction"], ACTION)
                self._deployment(rule["metricTrigger"]["metricResourceUri"])

    def _deployment(self, uri: Any) -> str:
        path = str(uri)[len(names.WORKSPACE_ID) + 1 :]
        if not str(uri).lower().startswith(names.WORKSPACE_ID.lower()) or self._resources.find(path) is None:
            raise ServiceError(404, "TargetResourceNotFound", f"There is no {uri}.")
        return str(uri).lower()


def _check_version(request: Request) -> None:
    if request.api_version not in API_VERSIONS:
        raise ServiceError(400, "NoRegisteredProviderFound", f"no api-version {request.api_version} of autoscale")


def _check_keys(part: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(part) - known:
        raise ServiceError(400, "UnsupportedRequestContent", f"{sorted(unknown)} are no properties of it.")


def _check_capacity(capacity: Mapping[str, Any]) -> None:
    if not all(isinstance(value, str) and value.isdigit() for value in capacity.values()):
        raise ServiceError(400, "BadRequest", "The numbers of a capacity are strings.")
    least, usual, most = (int(capacity[key]) for key in ("minimum", "default", "maximum"))
    if not least <= usual <= most:
        raise ServiceError(400, "BadRequest", f"The capacity {least} <= {usual} <= {most} does not hold.")


def _check_part(part: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Each key with one of some words, a type or types, or a duration between two numbers of minutes."""
    if part.keys() != asked.keys():
        raise ServiceError(400, "BadRequest", f"{sorted(part)} are not the properties {sorted(asked)}.")
    for key, wanted in asked.items():
        value = part[key]
        if isinstance(wanted, tuple) and isinstance(wanted[0], int):
            match = re.fullmatch(r"PT(\d+)M", str(value))
            good = match is not None and wanted[0] <= int(match[1]) <= wanted[1]
        elif isinstance(wanted, tuple) and isinstance(wanted[0], str):
            good = value in wanted
        else:
            good = isinstance(value, wanted)
        if not good:
            raise ServiceError(400, "BadRequest", f"{key} cannot be {value!r}.")
