"""gunicorn's worker of threads, for the local endpoint: no client holds it up by sending, reading or closing slowly.

    gunicorn --worker-class ftkit.serving.local_worker.PromptWorker --threads 232 …

gthread gives each new connection one of its threads, which waits for the whole request, and waits in its one loop for
clients to close. Here the loop itself collects requests, and a thread gets one that is whole.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from ftkit.serving import log_files
from ftkit.serving.endpoint.answers import error_body
from ftkit.serving.endpoint.limits import Limits, limit_sending
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.local_arrivals import Arriving

LINGER_S = 2.0
"""How long a client may take to read an answer and close; a connection that is closed at once may lose the answer."""
MOST_CONNECTIONS = 8192
"""That wait for their requests to come; with more, the one that has waited longest is closed."""
MOST_BYTES = 64 * 2**20
"""Of requests that are not whole, together; with more, the longest of them is closed."""
REASONS = {408: "Request Timeout", 413: "Content Too Large", 431: "Request Header Fields Too Large"}
LOOK_S = 0.25
"""How often the loop looks for those that are late."""


class Awaited:
    """A connection whose request is not whole yet."""

    def __init__(self, connection: TConn, body_bytes: int, until: float):
        self.connection, self.until = connection, until
        self.request = Arriving(body_bytes)


class PromptWorker(ThreadWorker):
    """Ends a connection whose headers or body have not come whole in time."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._awaited: dict[TConn, Awaited] = {}  # the one that has waited longest first
        self._leaving: dict[TConn, float] = {}  # connections whose clients are to close them, until when
        self._bytes, self._looked = 0, 0.0

    def init_process(self) -> None:
        self._limits = Limits.from_environment(os.environ)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = min(2 * MOST_CONNECTIONS, hard) if hard != resource.RLIM_INFINITY else 2 * MOST_CONNECTIONS
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        self._most = min(MOST_CONNECTIONS, max(64, files - self.cfg.threads - 128))
        self.worker_connections = files  # closing the oldest keeps below it; gunicorn would stop accepting
        super().init_process()

    def notify(self) -> None:
        """Called in each turn of the main loop, at least once a second."""
        super().notify()
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        log_files.rotate(os.environ.get(log_files.VARIABLE, ""))
        for awaited in [awaited for awaited in self._awaited.values() if awaited.until < now or not self.alive]:
            self._give_up(awaited)
        for conn in [conn for conn, until in self._leaving.items() if until < now]:
            self._leave(conn)

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        limit_sending(client, self._limits.send_timeout_ms / 1000)
        self._await(TConn(self.cfg, client, address, listener.getsockname()))

    def enqueue_req(self, conn: TConn) -> None:
        """Wait for the next request of a connection that is kept; a part of it may be there."""
        parser: Any = conn.parser
        begun = parser.unreader.take_buffered() if parser else b""
        self._await(conn, begun)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._receive(self._await(conn), client)

    def finish_request(self, conn: TConn, fs: Any) -> None:
        if not fs.cancelled() and not fs.exception() and fs.result():
            super().finish_request(conn, fs)
        else:
            self._see_off(conn)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as error:  # of a send that the client left unread for too long
            self.log.info("closing %s: it does not read its answer", conn.client)
            raise StopIteration from error

    def _await(self, conn: TConn, begun: bytes = b"") -> Awaited:
        conn.sock.setblocking(False)
        header_s = self._limits.header_timeout_ms / 1000
        awaited = Awaited(conn, self._limits.body_bytes, time.monotonic() + header_s)
        self._awaited[conn] = awaited
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._receive, awaited))
        if begun:
            self._take(awaited, begun)
        while len(self._awaited) > self._most:
            self._give_up(next(iter(self._awaited.values())))
        return awaited

    def _receive(self, awaited: Awaited, client: socket.socket) -> None:
        if awaited.connection not in self._awaited:  # closed in the same turn of the loop
            return
        try:
            data = client.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            self._forget(awaited)
            self._close(awaited.connection)
            return
        if data:
            self._take(awaited, data)
        elif awaited.request.buffer:  # it breaks off; whoever reads it says so
            self._hand_over(awaited)
        else:
            self._forget(awaited)
            self._close(awaited.connection)

    def _take(self, awaited: Awaited, data: bytes) -> None:
        request = awaited.request
        before = request.stage
        request.add(data)
        self._bytes += len(data)
        if request.stage == "whole":
            self._hand_over(awaited)
        elif request.stage == "head too long":
            self._give_up(awaited, Refused("the headers are too long", "", 431))
        elif request.stage == "body too long":
            self._give_up(awaited, Refused(f"the body is longer than {self._limits.body_bytes:,} bytes", "", 413))
        elif request.stage != before:
            awaited.until = time.monotonic() + self._limits.body_timeout_ms / 1000
            if request.expects_continue:
                with suppress(OSError):
                    awaited.connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._bytes > MOST_BYTES:
            self._give_up(max(self._awaited.values(), key=lambda each: len(each.request.buffer)))

    def _hand_over(self, awaited: Awaited) -> None:
        """Give a whole request to a thread."""
        self._forget(awaited)
        conn = awaited.connection
        conn.sock.setblocking(True)
        conn.data_ready = True
        conn.init()
        parser: Any = conn.parser
        parser.unreader.unread(bytes(awaited.request.buffer))
        super().enqueue_req(conn)

    def _give_up(self, awaited: Awaited, why: Refused | None = None) -> None:
        """Close a connection whose request does not come, and say so."""
        self._forget(awaited)
        conn, limits = awaited.connection, self._limits
        if not why:
            in_body = awaited.request.stage == "body"
            part, ms = ("body", limits.body_timeout_ms) if in_body else ("headers", limits.header_timeout_ms)
            why = Refused(f"the {part} did not come whole within {ms / 1000:g} s", "", 408)
        if self.alive:
            self.log.info("closing %s: %s", conn.client, why.message)
        with suppress(OSError):  # its client may have closed it
            conn.sock.send(_answer(why), socket.MSG_DONTWAIT)
        self._see_off(conn)

    def _see_off(self, conn: TConn) -> None:
        """Wait for the client to read the end and close, with no thread and no pause of the loop."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
            return
        self._leaving[conn] = time.monotonic() + LINGER_S
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._drain, conn))

    def _drain(self, conn: TConn, client: socket.socket) -> None:
        try:
            over = not client.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over and conn in self._leaving:
            self._leave(conn)

    def _leave(self, conn: TConn) -> None:
        del self._leaving[conn]
        self.poller.unregister(conn.sock)
        self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    def _forget(self, awaited: Awaited) -> None:
        del self._awaited[awaited.connection]
        self._bytes -= len(awaited.request.buffer)
        self.poller.unregister(awaited.connection.sock)


def _answer(refused: Refused) -> bytes:
    content = json.dumps(error_body(refused)).encode()
    reason = REASONS[refused.status]
    head = f"HTTP/1.1 {refused.status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
