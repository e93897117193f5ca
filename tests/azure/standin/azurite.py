"""Azurite, Microsoft's storage emulator, as the blob store: its installation, its process, and the traffic to it."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

from ftkit.locks import locked
from standin import names
from standin.pki import Pki
from standin.web import Request, Response

PACKAGE = Path(__file__).resolve().parent.parent / "package.json"
HOME = PACKAGE.parents[2] / ".node"
LISTENING = "successfully listens on https://127.0.0.1:"
NOT_FORWARDED = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


def install(home: Path = HOME) -> Path:
    """Install what ``tests/azure/package.json`` pins, once, and return Azurite's entry.

    Test processes that begin together wait for the first of them.

    Raises:
        RuntimeError: npm is missing or fails; the message says so.
    """
    entry = home / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    pinned = home / "package.json"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home, "installing Azurite", wait=print):
        if not (entry.exists() and pinned.is_file() and pinned.read_bytes() == PACKAGE.read_bytes()):
            _install_into(home)
    return entry


def _install_into(home: Path) -> None:
    """Its ``package.json`` is the last that comes."""
    if not (npm := shutil.which("npm")):
        raise RuntimeError("the tests of Azure ML need Node.js with npm on the PATH, for Azurite")
    partial = home / "partial"
    for earlier in (partial, home / "node_modules"):
        shutil.rmtree(earlier, ignore_errors=True)
    partial.mkdir()
    shutil.copy(PACKAGE, partial)
    command = [npm, "install", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    (partial / "node_modules").rename(home / "node_modules")
    (partial / PACKAGE.name).replace(home / PACKAGE.name)
    shutil.rmtree(partial)


class Azurite:
    """A running Azurite with one account, all in memory."""

    def __init__(self, pki: Pki):
        command = [
            *("node", str(install()), "--blobPort", "0", "--inMemoryPersistence", "--silent", "--oauth", "basic"),
            *("--skipApiVersionCheck", "--disableTelemetry"),
            *("--cert", str(pki.certificate), "--key", str(pki.key)),
        ]
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"AZURITE_ACCOUNTS": f"{names.ACCOUNT}:{names.ACCOUNT_KEY}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._tls = ssl.create_default_context(cafile=str(pki.authority))
        self._local = threading.local()
        self.port = self._listening()

    def _listening(self) -> int:
        assert self._process.stdout
        said = []
        for line in self._process.stdout:
            said.append(line)
            if LISTENING in line:
                threading.Thread(target=self._process.stdout.read, daemon=True).start()
                return int(line.rpartition(":")[2])
        raise RuntimeError("Azurite did not start:\n" + "".join(said))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/{names.ACCOUNT}"

    def forward(self, request: Request) -> Response:
        """Pass a request on, and its answer back; each of the server's threads keeps a connection."""
        headers = {name: value for name, value in request.headers.items() if name not in NOT_FORWARDED}
        headers["content-length"] = str(len(request.body))
        try:
            answer, body = self._exchange(request, headers, fresh=False)
        except (http.client.HTTPException, OSError):
            answer, body = self._exchange(request, headers, fresh=True)
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in NOT_FORWARDED}
        if request.method != "HEAD":
            kept.pop("content-length", None)
            kept.pop("Content-Length", None)
        return Response(answer.status, body, kept)

    def _exchange(
        self, request: Request, headers: dict[str, str], fresh: bool
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection(fresh)
        connection.request(request.method, request.target, request.body, headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def _connection(self, fresh: bool) -> http.client.HTTPSConnection:
        if fresh or not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self._tls, timeout=120)
        return self._local.connection

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
