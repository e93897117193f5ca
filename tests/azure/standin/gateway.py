"""The scoring gateway: checks key or token, splits and mirrors traffic, and streams the deployment's answer back."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator

from standin import entra, names
from standin.endpoints import Endpoints
from standin.faults import Faults, plain
from standin.resources import Resources
from standin.serving import Server, Serving
from standin.web import Request, Response

DEPLOYMENT_HEADER = "azureml-model-deployment"
PASSED_ON = ("content-type", "accept", "x-ms-client-request-id", "x-request-id")
NO_ROUTE = (
    "No valid deployments to route to. Please check that the endpoint has at least one deployment with positive weight "
    "values or use a deployment specific header to route."
)


class Gateway:
    """Answers at ``<endpoint>.<region>.inference.ml.azure.com``."""

    def __init__(self, resources: Resources, endpoints: Endpoints, serving: Serving, faults: Faults):
        self._resources, self._endpoints = resources, endpoints
        self._serving, self._faults = serving, faults
        self._credit: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        name = request.host.removesuffix(names.SCORING_SUFFIX)
        endpoint = self._resources.find(f"onlineEndpoints/{name}")
        if endpoint is None:
            return _said(404, "endpoint not found")
        if not self._may(request, name, endpoint["properties"]["authMode"]):
            return _said(401, "key_auth_access_denied")
        if fault := self._faults.of_event("nonsense"):
            return plain(fault.detail)
        wanted = request.headers.get(DEPLOYMENT_HEADER)
        chosen = wanted or self._by_share(name, endpoint["properties"]["traffic"])
        server = self._serving.find(name, chosen) if chosen else None
        if chosen is None or server is None:
            return _said(404, NO_ROUTE)
        if server.port == 0:
            return _said(502, "no healthy upstream")
        if not wanted:
            server.answered += 1
            self._mirror(request, name, endpoint["properties"]["mirrorTraffic"])
        return _forwarded(request, server, chosen)

    def _may(self, request: Request, name: str, mode: str) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if mode == "Key":
            return token in self._endpoints.keys[name].values()
        if mode == "AMLToken":
            return token == self._endpoints.aml_tokens.get(name)
        return entra.token_audience(request) == entra.ML_AUDIENCE

    def _by_share(self, endpoint: str, traffic: dict[str, int]) -> str | None:
        """Weighted round robin: over a hundred requests every deployment gets just its share."""
        shares = {deployment: share for deployment, share in traffic.items() if share > 0}
        if not shares:
            return None
        with self._lock:
            for deployment, share in shares.items():
                self._credit[endpoint, deployment] += share
            chosen = max(shares, key=lambda deployment: self._credit[endpoint, deployment])
            self._credit[endpoint, chosen] -= sum(shares.values())
        return chosen

    def _mirror(self, request: Request, endpoint: str, mirror: dict[str, int]) -> None:
        """Copy a request to a deployment when its share is due; the copy's answer is thrown away."""
        for deployment, share in mirror.items():
            with self._lock:
                self._credit[endpoint, f"mirror {deployment}"] += share
                due = self._credit[endpoint, f"mirror {deployment}"] >= 100
                if due:
                    self._credit[endpoint, f"mirror {deployment}"] -= 100
            server = self._serving.find(endpoint, deployment)
            if due and server and server.port:
                server.mirrored += 1
                threading.Thread(target=_forwarded, args=(request, server, deployment), daemon=True).start()


def _forwarded(request: Request, server: Server, deployment: str) -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=180)
    headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
    try:
        connection.request(request.method, request.target, request.body, headers)
        answer = connection.getresponse()
    except OSError:
        return _said(502, "upstream connect error or disconnect/reset before headers")
    kept = {"Content-Type": answer.getheader("Content-Type", "application/json"), DEPLOYMENT_HEADER: deployment}
    status = answer.status
    if status != 200:  # "If your model container returns a non-200 response, Azure returns a 424."
        kept["ms-azureml-model-error-statuscode"] = str(status)
        status = 424
    if answer.getheader("Content-Length") is None:
        return Response(status, b"", kept, _chunks(connection, answer))
    body = answer.read()
    connection.close()
    return Response(status, body, kept)


def _chunks(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := answer.read1(1 << 16):
        yield chunk
    connection.close()


def _said(status: int, text: str) -> Response:
    response = plain(text)
    response.status = status
    response.headers["Content-Type"] = "text/plain"
    return response
