"""Faults that a test asks for: of single requests, and of what the service does behind them."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

from standin import names
from standin.web import CutConnection, Request, Response, ServiceError, answer

FOREVER = -1


@dataclass
class Fault:
    """Something that goes wrong ``times`` times (``FOREVER`` for always); ``met`` counts how often it has."""

    name: str
    times: int = 1
    met: int = 0
    reached: threading.Event = field(default_factory=threading.Event, repr=False)

    def take(self) -> bool:
        if self.met == self.times:
            return False
        self.met += 1
        self.reached.set()
        return True


@dataclass
class RequestFault(Fault):
    """Answers a request in the service's stead, or cuts its connection when it has no response.

    Attributes:
        method: the method, any if empty.
        path: an expression to be found in ``host/path``, case aside.
        after: matching requests that are let through first.
        lost: the service does what it is asked, and the answer to that is lost.
    """

    method: str = ""
    path: str = ""
    response: Response | None = None
    after: int = 0
    lost: bool = False

    def matches(self, request: Request) -> bool:
        return self.method in ("", request.method) and bool(
            re.search(self.path, f"{request.host}{request.path}", re.IGNORECASE)
        )

    def meet(self, request: Request) -> Response:
        if self.response is None:
            raise CutConnection(self.name)
        return self.response


@dataclass
class EventFault(Fault):
    """Befalls a job, a build, a deployment or an answer; ``detail`` is its message or what it waits for."""

    detail: str = ""


class Faults:
    """The faults in force. ``clear`` ends all of them; each method returns the fault, to ask whether it was met."""

    def __init__(self) -> None:
        self._requests: list[RequestFault] = []
        self._events: dict[str, list[EventFault]] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()
            self._events.clear()

    # Of requests: method and an expression for host and path; `times` in a row, after letting `after` through.

    def throttled(self, method: str, path: str, *, retry_after: float = 1, times: int = 1, after: int = 0) -> Fault:
        """429 with Retry-After, in seconds."""
        headers = {"Retry-After": f"{retry_after:g}"}
        error = ServiceError(429, "TooManyRequests", "The request was throttled. Retry later.", headers)
        return self._on(method, path, error.response(), times, after)

    def unavailable(self, method: str, path: str, *, times: int = FOREVER, after: int = 0) -> Fault:
        """503."""
        error = ServiceError(503, "ServiceUnavailable", "The service is temporarily unavailable.")
        return self._on(method, path, error.response(), times, after)

    def forbidden(self, method: str, path: str, *, times: int = FOREVER) -> Fault:
        """403, as when a role assignment is missing."""
        message = (
            f"The client '{names.CLIENT}' with object id '{names.CLIENT}' does not have authorization to perform "
            f"this action over scope '{names.WORKSPACE_ID}' or the scope is invalid."
        )
        return self._on(method, path, ServiceError(403, "AuthorizationFailed", message).response(), times, 0)

    def conflict(self, method: str, path: str, *, times: int = 1, after: int = 0) -> Fault:
        """409, as when another operation on the resource is still under way."""
        error = ServiceError(409, "ResourceConflict", "Another operation on this resource is in progress.")
        return self._on(method, path, error.response(), times, after)

    def expired_token(self, method: str, path: str, *, times: int = 1, after: int = 0) -> Fault:
        """401 with the challenge that asks for a new token."""
        challenge = (
            f'Bearer authorization_uri="https://{names.LOGIN}/{names.TENANT}", error="invalid_token", '
            'error_description="The access token has expired."'
        )
        error = ServiceError(
            401,
            "ExpiredAuthenticationToken",
            "The access token expiry UTC time is past.",
            {"WWW-Authenticate": challenge},
        )
        return self._on(method, path, error.response(), times, after)

    def cut(self, method: str, path: str, *, times: int = 1, after: int = 0) -> Fault:
        """The connection is reset after half of the request's body."""
        return self._on(method, path, None, times, after)

    def lost(self, method: str, path: str, *, times: int = 1, after: int = 0) -> Fault:
        """500, once the service has done what it was asked."""
        error = ServiceError(500, "InternalServerError", "Received 500 from a service request.")
        return self._on(method, path, error.response(), times, after, lost=True)

    def being_sent(self, path: str, *, times: int = 1) -> Fault:
        """The store's answer to a file that somebody else has begun to send since it was looked for."""
        error = ServiceError(
            409, "BlobAlreadyExists", "The specified blob already exists.", {"x-ms-error-code": "BlobAlreadyExists"}
        )
        return self._on("PUT", rf"blob\.core\.windows\.net/.*{path}", error.response(), times, 0)

    def answers(
        self,
        method: str,
        path: str,
        status: int,
        code: str = "Injected",
        message: str = "injected",
        times: int = 1,
        after: int = 0,
    ) -> Fault:
        """Any other error."""
        return self._on(method, path, ServiceError(status, code, message).response(), times, after)

    # Of what happens behind requests.

    def build_fails(self, message: str = "ERROR: No matching distribution found for torch==99.0") -> Fault:
        """The next image build ends with this line in its log."""
        return self._when("build", message)

    def job_fails(self, message: str = "The node ran out of disk.") -> Fault:
        """The next job fails for a reason of the service's, before its command starts."""
        return self._when("job", message)

    def job_evicted(self, once_written: str) -> Fault:
        """The next spot job is evicted as soon as an output holds a file whose path matches this glob."""
        return self._when("eviction", once_written)

    def init_fails(self, without: str = "") -> Fault:
        """The next deployment gets a model without the files of this name, or without any; so ``init()`` fails."""
        return self._when("init", without)

    def never_healthy(self) -> Fault:
        """The next deployment's container does not answer its probes until the service gives up."""
        return self._when("health", "")

    def nonsense(self, body: str = "<html><body>gateway</body></html>", *, times: int = FOREVER) -> Fault:
        """Requests to any deployment are answered with 200 and this."""
        return self._when("nonsense", body, times)

    # Asked by the stand-in.

    def of_request(self, request: Request) -> RequestFault | None:
        with self._lock:
            for fault in self._requests:
                if fault.met == fault.times or not fault.matches(request):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.take():
                    return fault
        return None

    def of_event(self, kind: str) -> EventFault | None:
        with self._lock:
            return next((fault for fault in self._events.get(kind, []) if fault.take()), None)

    def _on(
        self, method: str, path: str, response: Response | None, times: int, after: int, *, lost: bool = False
    ) -> Fault:
        name = f"{response.status if response else 'cut'} on {method} {path}"
        fault = RequestFault(name, times, method=method, path=path, response=response, after=after, lost=lost)
        with self._lock:
            self._requests.append(fault)
        return fault

    def _when(self, kind: str, detail: str, times: int = 1) -> Fault:
        fault = EventFault(kind, times, detail=detail)
        with self._lock:
            self._events.setdefault(kind, []).append(fault)
        return fault


def plain(text: str) -> Response:
    """An answer that is not JSON."""
    response = answer()
    response.headers["Content-Type"] = "text/html"
    response.body = text.encode()
    return response
