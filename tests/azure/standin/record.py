"""What clients sent: every request, without the values of its credentials."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from standin import names
from standin.web import Request

SECRET_HEADERS = {"authorization", "secret", "x-ms-copy-source-authorization"}
KEPT_BYTES = 4 << 20


@dataclass(frozen=True)
class Exchange:
    """One request and the status of its answer; bodies above 4 MiB and those sent to the login are not kept.

    ``size`` is the body's length in bytes, ``fault`` the fault that was met instead of an answer.
    """

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    size: int
    status: int
    fault: str = ""

    @property
    def api_version(self) -> str:
        return self.query.get("api-version", "")

    def __str__(self) -> str:
        fault = f"  ({self.fault})" if self.fault else ""
        path = self.path.replace(names.WORKSPACE_ID, "~")
        return f"{self.status} {self.method} {self.host}{path} {self.api_version} {self.size} bytes{fault}"


class Record:
    """The exchanges since the last ``clear``, in order of their answers."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._lock = threading.Lock()

    def add(self, request: Request, status: int, fault: str = "") -> None:
        kept = b"" if request.host == names.LOGIN or len(request.body) > KEPT_BYTES else request.body
        headers = {name: "***" if name in SECRET_HEADERS else value for name, value in request.headers.items()}
        query = {name: "***" if name == "sig" else value for name, value in request.query.items()}
        exchange = Exchange(
            request.method, request.host, request.path, query, headers, kept, len(request.body), status, fault
        )
        with self._lock:
            self._exchanges.append(exchange)

    def clear(self) -> None:
        with self._lock:
            self._exchanges.clear()

    def __iter__(self) -> Iterator[Exchange]:
        with self._lock:
            return iter(list(self._exchanges))

    def to(self, method: str = "", path: str = "", host: str = "") -> list[Exchange]:
        """Those with this method, a path that the expression is found in, and a host that ends so."""
        return [
            exchange
            for exchange in self
            if method in ("", exchange.method)
            and re.search(path, exchange.path, re.IGNORECASE)
            and exchange.host.endswith(host)
        ]

    @property
    def sent_bytes(self) -> int:
        """Bytes of all bodies, uploads included, login left out."""
        return sum(exchange.size for exchange in self if exchange.host != names.LOGIN)

    @property
    def uploaded_bytes(self) -> int:
        return sum(exchange.size for exchange in self.to("PUT", host=names.BLOB_HOST))

    def holding(self, text: str) -> list[Exchange]:
        """Requests that carried this text in path, query, a header or a kept body; those to the key vault aside."""
        needle = text.encode()
        return [
            exchange
            for exchange in self
            if exchange.host != names.VAULT_HOST
            and (
                needle in exchange.body
                or any(text in value for value in (exchange.path, *exchange.query.values(), *exchange.headers.values()))
            )
        ]

    def __str__(self) -> str:
        return "\n".join(str(exchange) for exchange in self)
