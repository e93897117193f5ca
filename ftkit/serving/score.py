"""Scoring script of an Azure ML online endpoint: one model, asked by many at a time; thinking and output apart.

With the modules in ``endpoint/`` it is all of ftkit that an endpoint gets. Azure ML's inference server calls ``init``
once and ``run`` for each request. It needs gunicorn's gthread worker and a thread for each request in hand:

    GUNICORN_CMD_ARGS="--worker-class gthread --threads 232" azmlinfsrv --entry_script score.py --model_dir <folder>

Request   {"messages": [{"role": "user", "content": "…"}], "max_new_tokens": 500}, or {"prompt": "…"}; "stream": true
          for server-sent events. With a "model" in it, or at /v1/…, it is one of OpenAI's chat completions, or with
          an "input" too a request of the Responses API, and so is the answer.
Answer    {"output", "thinking", "usage": {"prompt_tokens", "completion_tokens"}, "finish_reason": "stop" | "length" |
          "tool_calls"}, "tool_calls" if there are any, and "note" when something is missing. A bad request gets a 4xx
          with {"error": {"message", "field", …}}. GET gives the OpenAPI document of all this.
Adapters  of PEFT in adapters/<name>/ beside the weights are loaded as well; "model" names one, or the model itself.
Settings  FTKIT_MAX_NEW_TOKENS, FTKIT_MAX_INPUT_TOKENS, FTKIT_MAX_CONCURRENT_REQUESTS, FTKIT_BATCH_SIZE,
          SCORING_TIMEOUT_MS, FTKIT_BODY_TIMEOUT_MS, FTKIT_SEND_TIMEOUT_MS; FTKIT_MODEL, the model's names in requests,
          commas between; FTKIT_ENGINE (auto, transformers, vllm), FTKIT_ENGINE_ARGS of vllm serve,
          FTKIT_FRONT_PROCESSES, gunicorn's workers that share one vLLM; and FTKIT_HEADER_TIMEOUT_MS on the local
          platform.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flask import Request as HttpRequest
from flask import Response
from flask import request as current_request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

sys.path.insert(0, str(Path(__file__).parent))  # at an endpoint the folder of the package

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint import paths
from ftkit.serving.endpoint.answers import body, error_body, events
from ftkit.serving.endpoint.deadlines import Deadlines
from ftkit.serving.endpoint.limits import Limits, limit_sending
from ftkit.serving.endpoint.loading import find_model
from ftkit.serving.endpoint.openapi import document
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import parse_request
from ftkit.serving.endpoint.service import Served

try:
    from azureml_inference_server_http.api.aml_request import rawhttp  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:  # served by gunicorn alone

    def rawhttp(func: Callable[..., Any]) -> Callable[..., Any]:
        return func


REFUSED_WITH = {408: {"Connection": "close"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "10"}}
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}

log = logging.getLogger("azmlinfsrv.print")
_served: Any = None
_deadlines = Deadlines()


def init() -> None:
    """Load the model below ``AZUREML_MODEL_DIR``; called once, before any request."""
    global _served
    if not (root := os.environ.get("AZUREML_MODEL_DIR")):
        raise ModelError("AZUREML_MODEL_DIR is not set: it names the folder that holds the model's folder")
    began, limits, folder = time.monotonic(), Limits.from_environment(os.environ), find_model(Path(root))
    names = [name for name in os.environ.get("FTKIT_MODEL", "").split(",") if name]
    engine, arguments = os.environ.get("FTKIT_ENGINE", "auto"), shlex.split(os.environ.get("FTKIT_ENGINE_ARGS", ""))
    _served = Served(folder, limits, names, engine, arguments, int(os.environ.get("FTKIT_FRONT_PROCESSES", "1")))
    _answer_probes()
    for note in _served.notes:
        print(note)
    print(f"serving {folder} on {_served.where}, loaded in {time.monotonic() - began:.1f} s; {limits}")


def _answer_probes() -> None:
    """Have ``GET /`` tell the engine's health too: Azure ML's server itself would always answer that it is healthy."""
    if not (routes := sys.modules.get("azureml_inference_server_http.server.routes")):
        return

    @routes.main_blueprint.before_request
    def tell() -> Response | None:
        down = why_not_ready() if current_request.path == "/" else ""
        return Response(down, 503) if down else None


def why_not_ready() -> str:
    """What keeps the endpoint from answering; empty if nothing does."""
    return "" if _served.engine.is_ready else "the engine is being started again"


@rawhttp
def run(request: HttpRequest) -> Response:
    """Answer one request: in JSON, as server-sent events, or with a 4xx."""
    if request.method == "OPTIONS":
        return _respond("")
    try:
        return _answer(request)
    except Refused as error:
        return refuse(error)
    except Exception:
        log.exception("a request failed")
        return refuse(Refused("the endpoint failed; its log says why", status=500))


def refuse(why: Refused) -> Response:
    """The answer to a request that is not answered."""
    return _json(error_body(why), why.status, REFUSED_WITH.get(why.status))


def describe() -> Response:
    """The OpenAPI document of ``/score``."""
    return _json(document(_served.limits))


def _answer(request: HttpRequest) -> Response:
    entry, model = paths.route(request.method, request.path)
    if entry == paths.MODELS:
        return _json(_served.adapters.listing())
    if model:
        return _json(_served.adapters.entry(model))
    if request.method in ("GET", "HEAD"):
        return describe()
    connection = request.environ["gunicorn.socket"]  # request itself is gone once a stream has begun
    limit_sending(connection, _served.limits.send_timeout_ms / 1000)
    content, encoding = _content(request, connection), request.headers.get("Content-Encoding", "")
    speaks = {"openai": entry == paths.CHAT, "responses": entry == paths.RESPONSES}
    asked = parse_request(content, _served.rules, **speaks, content_encoding=encoding)
    answerings = _served.begin_all(asked)

    def cancel() -> None:
        for answering in answerings:
            answering.job.cancel()

    def is_gone() -> bool:
        return _closed(connection)

    if asked.stream:
        response = _respond(events(answerings, is_gone), 200, STREAM_HEADERS)
        response.call_on_close(cancel)
        return response
    try:
        return _json(body(answerings[0].request, [answering.whole(is_gone) for answering in answerings]))
    finally:
        cancel()


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(body, ensure_ascii=False)
    return _respond(text, status, {"Content-Type": "application/json", **(headers or {})})


def _respond(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """With the header that Azure ML expects of a response of ``run``; its server sets it to True for a 5xx."""
    return Response(content, status, {"x-ms-run-function-failed": "False", **(headers or {})})


def _content(request: HttpRequest, connection: socket.socket) -> bytes:
    """The body, if all of it comes in time; a late one ends by the end of the connection's reading side."""
    request.max_content_length, seconds = _served.limits.body_bytes, _served.limits.body_timeout_ms / 1000
    is_late = threading.Event()
    content = b""
    try:
        with _deadlines.within(seconds, partial(_end_reading, connection, is_late)):
            content = request.get_data()
    except RequestEntityTooLarge as error:
        raise Refused(f"the body is longer than {_served.limits.body_bytes:,} bytes", status=413) from error
    except (ClientDisconnected, NoMoreData) as error:
        if not is_late.is_set():
            raise Refused("the body broke off") from error
    except ParseException as error:
        raise Refused(f"the body's chunks are broken: {error}") from error
    if is_late.is_set():
        raise Refused(f"the body did not come whole within {seconds:g} s", status=408)
    return content


def _end_reading(connection: socket.socket, is_late: threading.Event) -> None:
    is_late.set()
    with suppress(OSError):  # its client may have closed it
        connection.shutdown(socket.SHUT_RD)


def _closed(connection: socket.socket) -> bool:
    """Whether the client has closed the connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
