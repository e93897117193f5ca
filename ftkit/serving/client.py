"""Asking an endpoint, local or managed: the request's body from the configuration, one POST, errors explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ftkit.config.schema import Invoke
from ftkit.errors import StageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build_payload(invoke: Invoke) -> dict[str, Any]:
    """The request's body: of ``invoke.prompt``, ``invoke.messages`` or ``invoke.file``, the last as it is.

    Raises:
        StageError: not exactly one is given, or the file is missing or no JSON object.
    """
    given = [name for name in ("prompt", "messages", "file") if getattr(invoke, name) is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given at once" if given else "nothing is asked"
        raise StageError(what, where="invoke", cure="invoke.prompt='…', invoke.messages=[…] or invoke.file=….json")
    if invoke.file is not None:
        return _read(Path(invoke.file).expanduser())
    return {given[0]: getattr(invoke, given[0]), "max_new_tokens": invoke.max_new_tokens}


def score(
    scoring_uri: str, payload: dict[str, Any], *, timeout_s: float, key: str | None = None, log: str | None = None
) -> dict[str, Any]:
    """Send a request and return the answer.

    Args:
        scoring_uri: of the endpoint.
        payload: the request's body.
        timeout_s: seconds to wait for the whole answer.
        key: of a managed endpoint; sent as a bearer token, in no message.
        log: where the endpoint's log lies, for messages.

    Raises:
        StageError: the endpoint cannot be reached, refuses, fails, takes too long or does not answer in JSON.
    """
    try:
        import httpx
    except ImportError as error:
        raise StageError(
            "asking an endpoint needs httpx, which is not installed", cure="pip install 'ftkit[serve]'"
        ) from error

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    local = urlsplit(scoring_uri).hostname in LOOPBACK  # which no proxy of the environment can reach
    try:
        with httpx.Client(timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10)), trust_env=not local) as client:
            answer = client.post(scoring_uri, json=payload, headers=headers)
    except httpx.ConnectError as error:
        raise StageError("the endpoint is not running", where=scoring_uri, cure="stage=deploy,invoke") from error
    except httpx.TimeoutException as error:
        cure = "invoke.max_new_tokens=<fewer>, or a longer deployment.request_timeout_ms"
        raise StageError(f"no answer within {timeout_s:g} s", where=scoring_uri, cure=cure) from error
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
        raise StageError(
            f"the request failed: {type(error).__name__}", where=log or scoring_uri, cure="stage=deploy"
        ) from error
    return _checked(answer.status_code, answer.content, scoring_uri, log)


def _checked(status: int, content: bytes, uri: str, log: str | None) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    said, field = _said(body)
    if status in (401, 403):
        raise StageError(
            f"the endpoint does not accept the key ({status})", where=uri, cure="fetch the endpoint's key again"
        )
    if status in (408, 504):
        raise StageError(f"the endpoint took too long ({status})", where=uri, cure="invoke.max_new_tokens=<fewer>")
    if status == 429:
        raise StageError(f"the endpoint is busy: {said or status}", where=uri, cure="try again in a few seconds")
    if status == 424 or status >= 500:
        raise StageError(
            f"the endpoint failed ({status}): {said or 'it gives no reason'}", where=f"log {log}" if log else uri
        )
    if status >= 400:
        raise StageError(
            f"the endpoint refuses the request ({status}): {said or 'it gives no reason'}", where=field or uri
        )
    if not 200 <= status < 300 or not isinstance(body, dict):
        raise StageError(
            f"the answer ({status}) is no JSON object: {content[:80]!r}", where=uri, cure="stage=deploy,invoke"
        )
    return body


def _said(body: Any) -> tuple[str, str]:
    """Message and field of an error's body: score.py's ``{"error": {…}}``, or the server's own ``{"message"}``."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message") or ""), str(error.get("field") or "")
    return (error if isinstance(error, str) else ""), ""


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number that JSON knows")


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise StageError(
            f"cannot be read: {error.strerror}", where=str(path), cure="invoke.file=<a JSON file>"
        ) from error
    except ValueError as error:
        raise StageError(f"is not JSON: {error}", where=str(path), cure="mend it, or invoke.file=<another>") from error
    if not isinstance(body, dict):
        cure = 'write {"messages": [{"role": "user", "content": "…"}]}'
        raise StageError("holds no JSON object", where=str(path), cure=cure)
    return body
