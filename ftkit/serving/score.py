"""Scoring script of an Azure ML online endpoint: one gpt-oss, asked by many at a time; thinking and output apart.

With the modules in ``endpoint/`` it is all of ftkit that an endpoint gets. Azure ML's inference server calls ``init``
once and ``run`` for each request. It needs gunicorn's gthread worker and a thread for each request in hand:

    GUNICORN_CMD_ARGS="--worker-class gthread --threads 232" azmlinfsrv --entry_script score.py --model_dir <folder>

Request   {"messages": [{"role": "user", "content": "…"}], "max_new_tokens": 500}, or {"prompt": "…"}; "stream": true
          for server-sent events. With a "model" in it, it is one of OpenAI's chat completions, and so is the answer.
Answer    {"output", "thinking", "usage": {"prompt_tokens", "completion_tokens"}, "finish_reason": "stop" | "length"},
          and "note" when something is missing. A bad request gets a 4xx with {"error": {"message", "field", …}}.
          GET gives the OpenAPI document of all this.
Adapters  of PEFT in adapters/<name>/ beside the weights are loaded as well; "model" names one, or the model itself.
Settings  FTKIT_MAX_NEW_TOKENS, FTKIT_MAX_INPUT_TOKENS, FTKIT_MAX_CONCURRENT_REQUESTS, FTKIT_BATCH_SIZE,
          SCORING_TIMEOUT_MS, FTKIT_BODY_TIMEOUT_MS; and FTKIT_HEADER_TIMEOUT_MS on the local platform.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import Request as HttpRequest
from gunicorn.http.errors import NoMoreData
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

sys.path.insert(0, str(Path(__file__).parent))  # at an endpoint the folder of the package

from ftkit.serving.endpoint.answers import body, error_body, events
from ftkit.serving.endpoint.model import Served, find_model
from ftkit.serving.endpoint.openapi import document
from ftkit.serving.endpoint.requests import Limits, ModelError, Refused, parse_request

REFUSED_WITH = {408: {"Connection": "close"}, 429: {"Retry-After": "1"}}
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}

_served: Any = None


def init() -> None:
    """Load the model below ``AZUREML_MODEL_DIR``; called once, before any request."""
    global _served
    if not (root := os.environ.get("AZUREML_MODEL_DIR")):
        raise ModelError("AZUREML_MODEL_DIR is not set: it names the folder that holds the model's folder")
    began, limits, folder = time.monotonic(), Limits.from_environment(os.environ), find_model(Path(root))
    _served = Served(folder, limits)
    where, dtype = _served.model.device, str(_served.model.dtype).removeprefix("torch.")
    print(f"serving {folder} on {where} in {dtype}, loaded in {time.monotonic() - began:.1f} s; {limits}")


@rawhttp
def run(request: HttpRequest) -> AMLResponse:
    """Answer one request: in JSON, as server-sent events, or with a 4xx."""
    if request.method == "OPTIONS":
        return AMLResponse("", 200)
    if request.method == "GET":
        models = request.path.endswith("/models")
        return _json(_served.adapters.listing() if models else document(_served.limits))
    try:
        connection = request.environ["gunicorn.socket"]  # request itself is gone once a stream has begun
        answering = _served.begin(parse_request(_content(request, connection), _served.limits, _served.trained))
        if not answering.request.stream:
            return _json(body(answering.request, answering.whole(lambda: _closed(connection))))
        response = AMLResponse(events(answering, lambda: _closed(connection)), 200, STREAM_HEADERS)
        response.call_on_close(answering.job.cancel)
        return response
    except Refused as error:
        return _json(error_body(error), error.status, REFUSED_WITH.get(error.status))


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> AMLResponse:
    text = json.dumps(body, ensure_ascii=False)
    return AMLResponse(text, status, {"Content-Type": "application/json", **(headers or {})})


def _content(request: HttpRequest, connection: socket.socket) -> bytes:
    """The body, if all of it comes in time; a late one ends by the end of the connection's reading side."""
    request.max_content_length, seconds = _served.limits.body_bytes, _served.limits.body_timeout_ms / 1000
    is_late = threading.Event()
    timer = threading.Timer(seconds, _end_reading, [connection, is_late])
    timer.daemon = True
    timer.start()
    content = b""
    try:
        content = request.get_data()
    except RequestEntityTooLarge as error:
        raise Refused(f"the body is longer than {_served.limits.body_bytes:,} bytes", status=413) from error
    except (ClientDisconnected, NoMoreData) as error:
        if not is_late.is_set():
            raise Refused("the body broke off") from error
    finally:
        timer.cancel()
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
