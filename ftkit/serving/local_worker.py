"""gunicorn's worker of threads, for the local endpoint: no client holds it up by sending or closing slowly.

    gunicorn --worker-class ftkit.serving.local_worker.PromptWorker --threads 232 …

gthread itself waits for the end of a request's headers for as long as something trickles in, with one of its threads;
and for a client to close its connection for two seconds, with the loop that accepts all others.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from ftkit.serving.endpoint.requests import Limits

TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
LINGER_S = 2.0
"""How long a client may take to read an answer and close; a connection that is closed at once may lose the answer."""


class PromptWorker(ThreadWorker):
    """Ends a connection whose headers have not come whole within ``FTKIT_HEADER_TIMEOUT_MS``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._awaited: dict[TConn, float] = {}  # connections whose headers are being read, until when

    def run(self) -> None:
        self._header_seconds = Limits.from_environment(os.environ).header_timeout_ms / 1000
        super().run()

    def notify(self) -> None:
        """Called in each turn of the main loop, at least once a second."""
        super().notify()
        now = time.monotonic()
        for connection, until in list(self._awaited.items()):
            if until < now and self._awaited.pop(connection, None):
                self.log.info("closing %s: no whole headers in %g s", connection.client, self._header_seconds)
                with suppress(OSError):  # its client may have closed it
                    connection.sock.send(TOO_LATE, socket.MSG_DONTWAIT)
                    connection.sock.shutdown(socket.SHUT_RD)  # what waits to read sees the end

    def handle(self, conn: TConn) -> Any:
        self._awaited[conn] = time.monotonic() + self._header_seconds
        try:
            stays = super().handle(conn)
        finally:
            self._awaited.pop(conn, None)
        if not stays:
            _linger(conn.sock)
        return stays

    def handle_request(self, req: Any, conn: TConn) -> Any:
        self._awaited.pop(conn, None)
        return super().handle_request(req, conn)


def _linger(connection: socket.socket) -> None:
    """Wait for the client to close here, in a request's own thread: the main loop, which would, then has no need to."""
    until = time.monotonic() + LINGER_S
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (seconds := until - time.monotonic()) > 0:
            connection.settimeout(seconds)
            if not connection.recv(65536):
                return
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
