"""The CONNECT proxy that clients are pointed at: known hosts lead to the stand-in, others are refused."""

from __future__ import annotations

import select
import socket
import socketserver
import threading

from standin.names import known_host

IDLE_SECONDS = 600


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Tunnels to one address on a free port of 127.0.0.1; ``refused`` lists the hosts that it would not connect to."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, target: tuple[str, int]):
        self.target = target
        self.refused: list[str] = []
        super().__init__(("127.0.0.1", 0), _Tunnel)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="stand-in proxy", daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Tunnel(socketserver.StreamRequestHandler):
    server: ConnectProxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        method, target, *_ = (*self.rfile.readline().decode("latin1").split(), "", "")
        while self.rfile.readline().strip():
            pass
        host = target.rpartition(":")[0].lower()
        if method != "CONNECT" or not known_host(host):
            self.server.refused.append(host or target or method)
            self.wfile.write(b"HTTP/1.1 502 refused by the stand-in\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(self.server.target) as upstream:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self._relay(self.connection, upstream)

    @staticmethod
    def _relay(client: socket.socket, upstream: socket.socket) -> None:
        other = {client: upstream, upstream: client}
        try:
            while ready := select.select(list(other), [], [], IDLE_SECONDS)[0]:
                for source in ready:
                    if not (data := source.recv(1 << 18)):
                        return
                    other[source].sendall(data)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
