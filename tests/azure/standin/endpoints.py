"""Managed online endpoints and their deployments, as resources; ``serving`` runs them, ``gateway`` routes."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from standin import entra, names
from standin.quota import Quota, find_size
from standin.resources import Operations, Resource, Resources
from standin.serving import Serving
from standin.web import Request, Response, Router, ServiceError, answer

NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9-]{1,30})[a-zA-Z0-9]")
LONGEST_REQUEST_MS = 180_000
PROBE = {"failureThreshold": 30, "initialDelay": "PT10S", "period": "PT10S", "successThreshold": 1, "timeout": "PT2S"}
DEPLOYMENT_DEFAULTS = {
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "requestSettings": {"requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 1, "maxQueueWait": "PT0.5S"},
    "scaleSettings": {"scaleType": "Default"},
}


class Endpoints:
    """Their routes. ``keys`` are the two keys of each endpoint; tokens of ``AMLToken`` endpoints are ``aml_tokens``."""

    def __init__(self, resources: Resources, operations: Operations, serving: Serving, quota: Quota):
        self._resources, self._operations = resources, operations
        self._serving, self._quota = serving, quota
        self._lock = threading.Lock()
        self.keys: dict[str, dict[str, str]] = {}
        self.aml_tokens: dict[str, str] = {}

    def routes(self, router: Router) -> None:
        endpoints = f"{names.WORKSPACE_ID}/onlineEndpoints"
        endpoint = f"{endpoints}/{{endpoint}}"
        deployment = f"{endpoint}/deployments/{{deployment}}"
        for method, template, handler in (
            ("GET", endpoints, self._list),
            ("GET", endpoint, self._get),
            ("PUT", endpoint, self._put),
            ("PATCH", endpoint, self._patch),
            ("DELETE", endpoint, self._delete),
            ("POST", f"{endpoint}/listKeys", self._list_keys),
            ("POST", f"{endpoint}/regenerateKeys", self._regenerate_keys),
            ("POST", f"{endpoint}/token", self._token),
            ("GET", f"{endpoint}/deployments", self._list_deployments),
            ("GET", deployment, self._get_deployment),
            ("PUT", deployment, self._put_deployment),
            ("DELETE", deployment, self._delete_deployment),
            ("POST", f"{deployment}/getLogs", self._logs),
        ):
            router.add(method, template, handler)

    def running(self) -> list[str]:
        """``endpoint/deployment`` of all that cost money."""
        return [
            f"{endpoint['name']}/{deployment['name']}"
            for endpoint in self._resources.children("onlineEndpoints")
            for deployment in self._resources.children(_deployments(endpoint["name"]))
        ]

    def clear(self) -> None:
        """Delete all endpoints."""
        for endpoint in self._resources.children("onlineEndpoints"):
            self._remove_endpoint(endpoint["name"])

    # Endpoints.

    def _list(self, request: Request) -> Response:
        return answer({"value": self._resources.children("onlineEndpoints")})

    def _get(self, request: Request, endpoint: str) -> Response:
        return answer(self._resources.get(_endpoint(endpoint)))

    def _put(self, request: Request, endpoint: str) -> Response:
        if not NAME.fullmatch(endpoint):
            raise ServiceError(400, "BadArgument", f"The endpoint name {endpoint} is not valid: 3 to 32 characters.")
        body = request.json
        properties = body["properties"]
        self._check_traffic(endpoint, properties.get("traffic") or {}, 100)
        self._check_traffic(endpoint, properties.get("mirrorTraffic") or {}, 50)
        host = f"https://{endpoint}{names.SCORING_SUFFIX}"
        properties |= {
            "scoringUri": f"{host}/score",
            "swaggerUri": f"{host}/swagger.json",
            "provisioningState": "Updating",
            "traffic": properties.get("traffic") or {},
            "mirrorTraffic": properties.get("mirrorTraffic") or {},
            "properties": properties.get("properties") or {},
        }
        with self._lock:
            old = self._resources.find(_endpoint(endpoint))
            if not old:
                properties["provisioningState"] = "Creating"
                self.keys[endpoint] = {f"{which}Key": uuid.uuid4().hex for which in ("primary", "secondary")}
            resource, new = self._resources.put(_endpoint(endpoint), body)
        done = self._operations.start(
            lambda: self._resources.change(_endpoint(endpoint), provisioningState="Succeeded")
        )
        return answer(resource, 201 if new else 200, **done)

    def _patch(self, request: Request, endpoint: str) -> Response:
        resource = self._resources.get(_endpoint(endpoint))
        resource, _ = self._resources.put(_endpoint(endpoint), {**resource, **request.json})
        return answer(resource)

    def _check_traffic(self, endpoint: str, traffic: Mapping[str, int], most: int) -> None:
        """Raises ServiceError: shares of unknown deployments, or that add up wrongly."""
        for deployment, share in traffic.items():
            found = self._resources.find(f"{_deployments(endpoint)}/{deployment}")
            if share and (not found or found["properties"]["provisioningState"] != "Succeeded"):
                raise ServiceError(
                    400, "BadArgument", f"Traffic names the deployment {deployment}, which is not there."
                )
        total = sum(traffic.values())
        if (most == 100 and total not in (0, 100)) or total > most:
            raise ServiceError(400, "BadArgument", f"The traffic shares add up to {total}.")

    def _delete(self, request: Request, endpoint: str) -> Response:
        if not self._resources.find(_endpoint(endpoint)):
            return answer(status=204)
        self._resources.change(_endpoint(endpoint), provisioningState="Deleting")
        return answer(None, 202, **self._operations.start(lambda: self._remove_endpoint(endpoint)))

    def _remove_endpoint(self, endpoint: str) -> None:
        for deployment in self._resources.children(_deployments(endpoint)):
            self._remove_deployment(endpoint, deployment["name"])
        self._resources.remove(_endpoint(endpoint))
        self.keys.pop(endpoint, None)

    # Their credentials.

    def _list_keys(self, request: Request, endpoint: str) -> Response:
        if self._resources.get(_endpoint(endpoint))["properties"]["authMode"] != "Key":
            raise ServiceError(400, "BadArgument", f"The endpoint {endpoint} does not use keys.")
        return answer(self.keys[endpoint])

    def _regenerate_keys(self, request: Request, endpoint: str) -> Response:
        which = f"{request.json['keyType'].lower()}Key"

        def work() -> None:
            self.keys[endpoint][which] = request.json.get("keyValue") or uuid.uuid4().hex

        return answer(None, 202, **self._operations.start(work))

    def _token(self, request: Request, endpoint: str) -> Response:
        self._resources.get(_endpoint(endpoint))
        token = self.aml_tokens.setdefault(endpoint, entra.issue(f"{endpoint}{names.SCORING_SUFFIX}"))
        return answer(
            {"accessToken": token, "tokenType": "Bearer", "expiryTimeUtc": 4_102_444_800, "refreshAfterTimeUtc": 0}
        )

    # Deployments.

    def _list_deployments(self, request: Request, endpoint: str) -> Response:
        self._resources.get(_endpoint(endpoint))
        return answer({"value": self._resources.children(_deployments(endpoint))})

    def _get_deployment(self, request: Request, endpoint: str, deployment: str) -> Response:
        return answer(self._resources.get(f"{_deployments(endpoint)}/{deployment}"))

    def _put_deployment(self, request: Request, endpoint: str, deployment: str) -> Response:
        self._resources.get(_endpoint(endpoint))
        body = request.json
        properties = body["properties"]
        self._check_deployment(deployment, properties)
        for key, usual in DEPLOYMENT_DEFAULTS.items():
            properties[key] = properties.get(key) or usual
        path = f"{_deployments(endpoint)}/{deployment}"
        properties["provisioningState"] = "Creating"
        count = (body.get("sku") or {}).get("capacity") or 1
        resource, new = self._resources.put(path, body)
        done = self._operations.start(lambda: self._deploy(endpoint, deployment, resource, count))
        return answer(resource, 201 if new else 200, **done)

    def _check_deployment(self, name: str, properties: Mapping[str, Any]) -> None:
        """Raises ServiceError: what the service refuses before it starts anything."""
        if not NAME.fullmatch(name):
            raise ServiceError(400, "BadArgument", f"The deployment name {name} is not valid: 3 to 32 characters.")
        find_size(properties["instanceType"])
        timeout = (properties.get("requestSettings") or {}).get("requestTimeout", "PT5S")
        if _milliseconds(timeout) > LONGEST_REQUEST_MS:
            raise ServiceError(400, "BadArgument", f"requestTimeout {timeout} is longer than 180 seconds.")
        for key in ("environmentId", "model"):
            if identifier := properties.get(key):
                self._resources.by_id(identifier)

    def _deploy(self, endpoint: str, deployment: str, resource: Resource, count: int) -> None:
        path = f"{_deployments(endpoint)}/{deployment}"
        size = resource["properties"]["instanceType"]
        try:
            self._serving.release(endpoint, deployment, self._quota)
            self._quota.take(size, count, serves=True)
            self._serving.hold(endpoint, deployment, size, count)
            self._serving.start(endpoint, deployment, resource["properties"])
        except Exception:
            self._resources.change(path, provisioningState="Failed")
            raise
        self._resources.change(path, provisioningState="Succeeded")

    def _delete_deployment(self, request: Request, endpoint: str, deployment: str) -> Response:
        path = f"{_deployments(endpoint)}/{deployment}"
        if not self._resources.find(path):
            return answer(status=204)
        found = self._resources.get(_endpoint(endpoint))["properties"]
        traffic = found["traffic"]
        if found["mirrorTraffic"].get(deployment):
            raise ServiceError(
                400, "BadArgument", f"The deployment {deployment} gets mirrored traffic; end that first."
            )
        if traffic.get(deployment):
            raise ServiceError(
                400,
                "BadArgument",
                f"The deployment {deployment} has {traffic[deployment]}% of the traffic; set it to 0 first.",
            )
        self._resources.change(path, provisioningState="Deleting")
        done = self._operations.start(lambda: self._remove_deployment(endpoint, deployment))
        return answer(None, 202, **done)

    def _remove_deployment(self, endpoint: str, deployment: str) -> None:
        self._serving.release(endpoint, deployment, self._quota)
        self._resources.remove(f"{_deployments(endpoint)}/{deployment}")

    def _logs(self, request: Request, endpoint: str, deployment: str) -> Response:
        self._resources.get(f"{_deployments(endpoint)}/{deployment}")
        lines = int(request.json.get("tail") or 500)
        container = request.json.get("containerType") or "InferenceServer"
        return answer({"content": self._serving.log(endpoint, deployment, container, lines)})


def _endpoint(name: str) -> str:
    return f"onlineEndpoints/{name}"


def _deployments(endpoint: str) -> str:
    return f"onlineEndpoints/{endpoint}/deployments"


def _milliseconds(duration: str) -> float:
    match = re.fullmatch(r"PT(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?", duration)
    if match is None:
        raise ServiceError(400, "BadArgument", f"{duration} is no duration of a request")
    return (float(match[1] or 0) * 60 + float(match[2] or 0)) * 1000
