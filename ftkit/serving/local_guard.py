"""Who may ask the local endpoint: it has no keys, and any page that a browser shows can send it requests.

A page whose name was bound to 127.0.0.1 after it was loaded (DNS rebinding) sends its own name as ``Host``; other pages
send theirs as ``Origin``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ftkit.serving.endpoint.answers import error_body
from ftkit.serving.endpoint.refusals import Refused, shown

OWN = ("127.0.0.1", "localhost", "::1")
HOSTS, ORIGINS = "FTKIT_ALLOWED_HOSTS", "AML_CORS_ORIGINS"
"""Environment variables with further ones, commas between; * is any."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class OwnHostsAlone:
    """A WSGI application that refuses other hosts and origins.

    Args:
        application: behind it.
        hosts: names that requests may ask for, beside this machine's own.
        origins: of pages that may ask, ``https://example.com``; pages of this machine may.
    """

    def __init__(self, application: Application, hosts: Iterable[str], origins: Iterable[str]):
        self._application, self._hosts, self._origins = application, {*OWN, *hosts}, {*origins}

    @classmethod
    def of(cls, application: Application, environment: Mapping[str, str]) -> OwnHostsAlone:
        hosts, origins = (
            [word.strip() for word in environment.get(name, "").split(",") if word.strip()] for name in (HOSTS, ORIGINS)
        )
        return cls(application, hosts, origins)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST"), environ.get("HTTP_ORIGIN")
        if host is not None and not {"*", _name(host)} & self._hosts:
            return _refuse(
                start_response, f"this endpoint is not {shown(host)}; deployment.allowed_hosts names further hosts"
            )
        if origin is not None and not {"*", origin} & self._origins and _name(origin) not in self._hosts:
            said = f"pages of {shown(origin)} may not ask this endpoint; deployment.cors_origins names those that may"
            return _refuse(start_response, said)
        return self._application(environ, start_response)


def _name(address: str) -> str:
    """The host's name in ``name:port`` or ``scheme://name:port``; empty if there is none."""
    try:
        return (urlsplit(address if "://" in address else f"//{address}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _refuse(start_response: Callable[..., Any], message: str) -> Iterable[bytes]:
    content = json.dumps(error_body(Refused(message, "", 403)), ensure_ascii=False).encode()
    start_response("403 Forbidden", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]
