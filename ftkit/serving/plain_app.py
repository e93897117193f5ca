"""``score.py`` under gunicorn alone, for Pythons that Azure ML's inference server does not support: 3.13 and newer.

Paths, request ids, headers and the lines of the log are that server's. ``/swagger.json`` describes ``/score`` as it is.
"""

from __future__ import annotations

import logging
import os
import time
import uuid

from flask import Flask, Response, g, request

from ftkit.serving import score
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.local_guard import ORIGINS
from ftkit.serving.local_paths import add_paths

LONGEST_ID = 100
"""Characters of a request's id."""
FAILED = "x-ms-run-function-failed"

log = logging.getLogger("azmlinfsrv")


def make_app() -> Flask:
    """Load the model and make the application that answers for it."""
    _log_as_the_server_does()
    score.init()
    app = Flask("azmlinfsrv")
    app.before_request(_prepare)
    app.after_request(_complete)
    app.add_url_rule("/", view_func=_health, methods=["GET"])
    app.add_url_rule("/swagger.json", view_func=score.describe, methods=["GET"])
    if origins := [origin.strip() for origin in os.environ.get(ORIGINS, "").split(",") if origin.strip()]:
        from flask_cors import CORS

        CORS(app, methods=["GET", "POST"], origins=origins)
    return add_paths(app, _score)


def _log_as_the_server_does() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s [%(process)d] %(name)s - %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _health() -> tuple[str, int]:
    down = score.why_not_ready()
    return (down, 503) if down else ("Healthy", 200)


def _score() -> Response:
    began = time.perf_counter()
    response = score.run(request)
    if response.status_code >= 500:
        response.headers[FAILED] = "True"
    response.headers["x-ms-run-fn-exec-ms"] = f"{(time.perf_counter() - began) * 1000:.3f}"
    return response


def _prepare() -> Response | None:
    """Note when a request began and what it is called; refuse a name that is too long for the log."""
    given, g.began, g.ids = request.headers, time.perf_counter(), {}
    own = given.get("x-request-id") or str(uuid.uuid4())
    legacy = given.get("x-ms-request-id", "")
    clients = given.get("x-ms-client-request-id") or legacy
    ids = {"x-request-id": own, "x-ms-request-id": legacy or clients or own, "x-ms-client-request-id": clients}
    if too_long := [name for name, value in ids.items() if len(value) > LONGEST_ID]:
        return score.refuse(Refused(f"{too_long[0]} is longer than {LONGEST_ID} characters", "", 431))
    g.ids = {name: value for name, value in ids.items() if value}
    return None


def _complete(response: Response) -> Response:
    response.headers.update(g.ids)
    if request.path != "/":
        took_ms, path = (time.perf_counter() - g.began) * 1000, request.full_path.rstrip("?")
        length = response.content_length if response.content_length is not None else "N/A"
        log.info("%s %s %s %.3fms %s", request.method, path, response.status_code, took_ms, length)
    return response


app = make_app()
