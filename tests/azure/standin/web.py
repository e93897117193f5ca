"""Requests, responses and the TLS server that carries them; nothing here knows of Azure ML."""

from __future__ import annotations

import http.server
import json
import re
import socket
import socketserver
import ssl
import struct
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request; ``path`` is decoded, ``target`` is as it came; header and query names are lower-case."""

    method: str
    host: str
    path: str
    target: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}

    @property
    def api_version(self) -> str:
        return self.query.get("api-version", "")


@dataclass
class Response:
    """One response; ``chunks`` takes the place of ``body`` when it is to be streamed."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] | None = None


class ServiceError(Exception):
    """Ends a request with an error in Azure's form."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def response(self) -> Response:
        return answer({"error": {"code": self.code, "message": self.message}}, self.status, **self.headers)


class CutConnection(Exception):
    """Ends a request by tearing its connection down."""


def answer(value: Any = None, status: int = 200, **headers: str) -> Response:
    """A JSON response; underscores in header names stand for hyphens."""
    body = b"" if value is None else json.dumps(value).encode()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, body, {"Content-Type": "application/json", **named})


Handler = Callable[..., Response]


class Router:
    """Finds a function by method and path; ``{name}`` in a template becomes an argument."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, template: str, handler: Handler) -> None:
        parts = re.split(r"\{(\w+)\}", template)
        pattern = "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        self._routes.append((method, re.compile(pattern, re.IGNORECASE), handler))

    def __call__(self, request: Request) -> Response:
        """Raises ServiceError: no route takes it."""
        for method, pattern, handler in self._routes:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                return handler(request, **match.groupdict())
        raise ServiceError(
            404, "NotFound", f"the stand-in has no answer to {request.method} {request.host}{request.path}"
        )


class Site(Protocol):
    """What the server hands requests to."""

    def meet(self, head: Request) -> Callable[[Request], Response]:
        """Given the head alone, say who answers; raises CutConnection to stop in the middle of the body."""
        ...


class TlsServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """HTTPS on a free port of 127.0.0.1, a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, site: Site, certificate: Path, key: Path):
        self.site = site
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        return self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="stand-in", daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TlsServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def handle_any(self) -> None:
        head = self._head()
        try:
            respond = self.server.site.meet(head)
        except CutConnection:
            self._tear_down(int(head.headers.get("content-length", "0")) // 2)
            return
        whole = Request(**{**vars(head), "body": self._body(head)})
        try:
            response = respond(whole)
        except ServiceError as error:
            response = error.response()
        except Exception as error:
            traceback.print_exc()
            response = answer({"error": {"code": "StandInError", "message": repr(error)}}, 500)
        self._send(response)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

    def _head(self) -> Request:
        parts = urlsplit(self.path)
        query = {name.lower(): values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        host = headers.get("host", "").partition(":")[0].lower()
        return Request(self.command, host, unquote(parts.path), self.path, query, headers)

    def _body(self, head: Request) -> bytes:
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(head.headers.get("content-length", "0")))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().partition(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def _tear_down(self, after: int) -> None:
        self.rfile.read(after)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        headers = {"x-ms-request-id": str(uuid.uuid4()), **response.headers}
        bodiless = self.command == "HEAD" or response.status in (204, 304)
        if response.chunks is not None:
            headers["Transfer-Encoding"] = "chunked"
        elif not bodiless:
            headers["Content-Length"] = str(len(response.body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if bodiless:
            return
        if response.chunks is None:
            self.wfile.write(response.body)
            return
        for chunk in response.chunks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
