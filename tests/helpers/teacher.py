"""Stands for a teacher: an OpenAI-compatible server that answers as a test says, or fails as it says."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Say = Callable[[dict[str, Any]], Message]


@dataclass
class Teacher:
    """What it does and what it was asked.

    Attributes:
        says: the message that answers a request's body.
        failures: taken one a request before it answers: a status with headers, or None to break the connection off.
        always: fails each request that it is true of, with 400.
        finish: of a body, the finish_reason.
        asked: bodies of the requests that were answered.
        tried: requests, failed ones included.
    """

    says: Say
    failures: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    always: Callable[[dict[str, Any]], bool] = lambda body: False
    finish: Callable[[dict[str, Any]], str] = lambda body: "stop"
    models: tuple[str, ...] = ("teacher",)
    key: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    tried: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any] | None:
        with self.lock:
            self.tried += 1
            if self.failures:
                failure = self.failures.pop(0)
                return None if failure is None else (*failure, {"error": {"message": "not now"}})
            if self.always(body):
                return 400, {}, {"error": {"message": "the prompt is too long"}}
            self.asked.append(body)
        choice = {"message": {"role": "assistant", **self.says(body)}, "finish_reason": self.finish(body)}
        return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}


@contextmanager
def serving(teacher: Teacher) -> Iterator[Teacher]:
    """Run it on a free port; ``teacher.url`` says which."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, {}, {"data": [{"id": name} for name in teacher.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if teacher.key and self.headers.get("Authorization") != f"Bearer {teacher.key}":
                self._reply(401, {}, {"error": {"message": "no such key"}})
            elif (found := teacher.answer(body)) is None:
                self.close_connection = True
            else:
                self._reply(*found)

        def _reply(self, status: int, headers: dict[str, str], body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    teacher.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
