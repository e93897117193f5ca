"""The managed identity of a job's machine: an endpoint on loopback that gives tokens to who knows its secret."""

from __future__ import annotations

import http.server
import json
import threading
import time
import uuid
from urllib.parse import parse_qs, urlsplit

from standin import entra


class ManagedIdentity(http.server.ThreadingHTTPServer):
    """What MSI_ENDPOINT and MSI_SECRET point at on Azure ML's machines."""

    daemon_threads = True

    def __init__(self) -> None:
        self.secret = uuid.uuid4().hex
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}/msi/token"
        return {"MSI_ENDPOINT": url, "MSI_SECRET": self.secret}

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="managed identity", daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ManagedIdentity  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        known = self.headers.get("secret") == self.server.secret
        body = json.dumps(self._token() if known else {"error": "unauthorized"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _token(self) -> dict[str, str]:
        resource = parse_qs(urlsplit(self.path).query)["resource"][0].removesuffix("/.default").rstrip("/")
        expires = str(int(time.time()) + entra.LIFETIME_SECONDS)
        return {
            "access_token": entra.issue(resource),
            "expires_on": expires,
            "resource": resource,
            "token_type": "Bearer",
        }
