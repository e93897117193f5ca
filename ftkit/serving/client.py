"""Asking an endpoint, local or managed: the request's body from the configuration, one POST, errors explained.

The answer comes whole, or piece by piece as server-sent events.

Two formats: that of ``score.py``, and OpenAI's chat completions, which a vLLM container speaks.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftkit.config.schema import Invoke
from ftkit.errors import StageError
from ftkit.packages import install_command
from ftkit.serving.response_bodies import of_event, of_response
from ftkit.serving.servers import SERVERS

if TYPE_CHECKING:
    import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODEL_STATUS = "ms-azureml-model-error-statuscode"
"""Header of a 424, which is what a managed endpoint makes of every answer of its container that is not 200: the
container's own status."""
TRIES = 4
"""How often a request is sent that the endpoint has not begun to answer."""
REQUEST_IDS = ("x-ms-request-id", "x-request-id", "x-ms-client-request-id")


class NotAnswering(StageError):
    """The endpoint cannot be reached, or nothing behind it takes requests at this moment."""


class Busy(StageError):
    """The endpoint takes no more requests at this moment: it is alive."""


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        thinking, output: either may be empty.
        finish_reason: ``stop`` if it ended by itself, ``tool_calls`` with a call, ``length`` if it was cut off.
        prompt_tokens, completion_tokens: of the request and of the whole answer; None where the server does not say.
        calls: of tools, in words.
        note: what the server says beside it; mostly empty.
    """

    thinking: str
    output: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    calls: tuple[str, ...] = ()
    note: str = ""


def build_payload(invoke: Invoke, server: str = "score", system: str = "", *, stream: bool = False) -> dict[str, Any]:
    """The request's body: of ``invoke.prompt``, ``invoke.messages`` or ``invoke.file``, the last as it is.

    Args:
        server: one of ``SERVERS``, whose format it is in.
        system: message that a server gets before a prompt which does not know the training's own.
        stream: the answer is to be streamed.

    Raises:
        StageError: not exactly one is given, or the file is missing or no JSON object.
    """
    given = [name for name in ("prompt", "messages", "file") if getattr(invoke, name) is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given at once" if given else "nothing is asked"
        raise StageError(what, where="invoke", cure="invoke.prompt='…', invoke.messages=[…] or invoke.file=….json")
    if invoke.file is not None:
        return _read(Path(invoke.file).expanduser())
    more: dict[str, Any] = {"model": invoke.model} if invoke.model else {}
    asked = SERVERS[server]
    more |= {**asked.asked, **(asked.asked_to_stream if stream else {})}
    if invoke.prompt is not None:
        return question(invoke.prompt, invoke.max_new_tokens, server, system) | more
    return {"messages": invoke.messages, asked.length: invoke.max_new_tokens} | more


def question(prompt: str, max_new_tokens: int, server: str, system: str = "") -> dict[str, Any]:
    """The body of a request with one question in it."""
    asked = SERVERS[server]
    if asked.is_own:
        return {"prompt": prompt, asked.length: max_new_tokens}
    before = [{"role": "system", "content": system}] if system else []
    return {"messages": [*before, {"role": "user", "content": prompt}], asked.length: max_new_tokens}


def read_answer(body: Mapping[str, Any], server: str, uri: str) -> Answer:
    """Take an answer's body apart.

    Args:
        body: in either format, whatever the server: a body from a file may be in the other.

    Raises:
        StageError: it has neither format.
    """
    try:
        if body.get("object") == "response":
            body = of_response(body)
        usage = body.get("usage") or {"prompt_tokens": None, "completion_tokens": None}
        counts, note = (usage["prompt_tokens"], usage["completion_tokens"]), str(body.get("note", ""))
        if "choices" not in body:
            calls = _calls(body)
            return Answer(str(body["thinking"]), str(body["output"]), str(body["finish_reason"]), *counts, calls, note)
        choice = body["choices"][0]
        message = choice["message"]
        thinking = message.get("reasoning") or message.get("reasoning_content") or ""
        finished = str(choice["finish_reason"])
        return Answer(thinking, message.get("content") or "", finished, *counts, _calls(message), note)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise StageError(
            f"the answer is not one of {SERVERS[server].name}: {json.dumps(body, ensure_ascii=False)[:80]}",
            where=uri,
            cure="stage=deploy,invoke",
        ) from error


def _calls(message: Mapping[str, Any]) -> tuple[str, ...]:
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return tuple(f"{function['name']}({function['arguments']})" for function in functions)


def score(
    scoring_uri: str,
    payload: dict[str, Any],
    *,
    timeout_s: float,
    key: str | None = None,
    log: str | None = None,
    headers: Mapping[str, str] | None = None,
    on_piece: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """Send a request and return the answer, in the server's format, or streamed in that of ``score.py``.

    What no server has begun to work on is sent again: when there was no connection, or when the answer is a 429 that
    says how long to wait. Anything else is not repeated, for the model may have been at work.

    Args:
        scoring_uri: of the endpoint.
        payload: the request's body.
        timeout_s: seconds to wait for the whole answer.
        key: key or token of a managed endpoint; sent as a bearer token, in no message.
        log: where the endpoint's log lies, for messages.
        headers: sent as well.
        on_piece: has the answer streamed, and gets ``thinking`` or ``output`` and new text of it.

    Raises:
        NotAnswering: the endpoint cannot be reached, or has nothing that takes requests.
        StageError: it refuses, fails, takes too long or does not answer in JSON.
    """
    try:
        import httpx
    except ImportError as error:
        raise StageError(
            "asking an endpoint needs httpx, which is not installed", cure=install_command("serve")
        ) from error

    sent = {**(headers or {}), REQUEST_IDS[-1]: str(uuid.uuid4())}
    if key:
        sent["Authorization"] = f"Bearer {key}"
    if on_piece or "stream" in payload:
        payload = payload | {"stream": on_piece is not None}
        payload.pop("stream_options", None)
        if on_piece and ("model" in payload or scoring_uri.endswith("/chat/completions")):
            payload["stream_options"] = {"include_usage": True}
    local = urlsplit(scoring_uri).hostname in LOOPBACK  # which no proxy of the environment can reach
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10))
    try:
        with httpx.Client(timeout=timeout, trust_env=not local) as client:
            answer = _posted(client, scoring_uri, payload, sent, time.monotonic() + timeout_s, may_come_up=not local)
            if on_piece and answer.is_success:
                return _streamed(answer, on_piece, log or scoring_uri)
            answer.read()
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise NotAnswering("the endpoint is not running", where=scoring_uri, cure="stage=deploy,invoke") from error
    except httpx.TimeoutException as error:
        cure = "invoke.max_new_tokens=<fewer>, or a longer deployment.request_timeout_ms"
        raise StageError(f"no answer within {timeout_s:g} s", where=scoring_uri, cure=cure) from error
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
        raise StageError(
            f"the request failed: {type(error).__name__}", where=log or scoring_uri, cure="stage=deploy"
        ) from error
    own = "" if local else sent[REQUEST_IDS[-1]]
    request = next((answer.headers[name] for name in REQUEST_IDS if name in answer.headers), own)
    where = f"{scoring_uri}, request {request}" if request else scoring_uri
    return _checked(_status(answer), answer.content, where, log)


def _posted(
    client: httpx.Client,
    uri: str,
    payload: dict[str, Any],
    headers: dict[str, str],
    deadline: float,
    *,
    may_come_up: bool,
) -> httpx.Response:
    """The answer to the first request that is taken, not read yet; a 429 once there is no time left to wait."""
    import httpx

    attempt = 0
    while True:
        pause, last = 2.0**attempt, attempt == TRIES - 1
        try:
            answer = client.send(client.build_request("POST", uri, json=payload, headers=headers), stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError):
            if not may_come_up or last or time.monotonic() + pause > deadline:
                raise
        else:
            asked = _seconds(answer) if _status(answer) == 429 else None
            if asked is None or last or time.monotonic() + asked > deadline:
                return answer
            answer.close()
            pause = asked
        time.sleep(pause)
        attempt += 1


def _streamed(answer: httpx.Response, on_piece: Callable[[str, str], None], where: str) -> dict[str, Any]:
    """Pass the pieces on as they come, and put the whole together in ``score.py``'s format."""
    whole: dict[str, Any] = {"thinking": "", "output": ""}
    for line in answer.iter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise StageError(f"the endpoint failed: {_said(event)[0]}", where=where)
        if event.get("type") == "error":
            raise StageError(f"the endpoint failed: {event.get('message')}", where=where)
        if str(event.get("type")).startswith("response."):
            event = of_event(event)
        if "choices" in event:
            event = _of_chunk(event)
        for kind in ("thinking", "output"):
            if text := event.pop(kind, None):
                whole[kind] += text
                on_piece(kind, text)
        for call in event.pop("tool_calls", None) or ():
            _add_call(whole.setdefault("tool_calls", []), call)
        whole |= event
    if "finish_reason" not in whole:
        raise StageError("the answer broke off", where=where, cure="the same command asks again")
    return whole


def _add_call(calls: list[dict[str, Any]], part: Mapping[str, Any]) -> None:
    """Add a call of a stream, or a further part of its arguments."""
    at, function = part.get("index", len(calls)), part["function"]
    if at >= len(calls):
        calls.append({"function": {"name": function["name"], "arguments": ""}})
    calls[-1]["function"]["arguments"] += function.get("arguments") or ""


def _of_chunk(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """An event of OpenAI's format as one of ``score.py``'s."""
    event = {name: chunk[name] for name in ("usage", "note") if chunk.get(name)}
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {}
        event["thinking"] = delta.get("reasoning") or delta.get("reasoning_content")
        event["output"] = delta.get("content")
        event["tool_calls"] = delta.get("tool_calls")
        if choice.get("finish_reason"):
            event["finish_reason"] = choice["finish_reason"]
    return event


def _status(answer: httpx.Response) -> int:
    """The status that the model's server gave, where the gateway shows another."""
    own = answer.headers.get(MODEL_STATUS, "")
    return int(own) if answer.status_code == 424 and own.isascii() and own.isdigit() else answer.status_code


def _seconds(answer: httpx.Response) -> float | None:
    """How long a busy server asks to wait; a second where a gateway has kept that back."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except KeyError:
        return 1.0 if answer.status_code == 424 else None
    except ValueError:
        return None


def _checked(status: int, content: bytes, uri: str, log: str | None) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    said, field = _said(body)
    if status in (401, 403):
        raise StageError(
            f"the endpoint does not accept the key or token ({status})",
            where=uri,
            cure="a token's identity needs the role AzureML Data Scientist; a key may just have been changed",
        )
    if status in (408, 504):
        raise StageError(f"the endpoint took too long ({status})", where=uri, cure="invoke.max_new_tokens=<fewer>")
    if status == 429:
        raise Busy(f"the endpoint is busy: {said or status}", where=uri, cure="try again in a few seconds")
    if status in (502, 503) or (status == 404 and "deployments" in content.decode(errors="replace")):
        raise NotAnswering(
            f"nothing behind the endpoint takes requests ({status})",
            where=f"log {log}" if log else uri,
            cure="stage=deploy,invoke; while a deployment is being changed, try again in a minute",
        )
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
        body = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_number)
    except OSError as error:
        raise StageError(
            f"cannot be read: {error.strerror}", where=str(path), cure="invoke.file=<a JSON file>"
        ) from error
    except UnicodeDecodeError as error:
        cure = f"iconv -f CP932 -t UTF-8 {path} > request.json, if it is Shift_JIS; then invoke.file=request.json"
        raise StageError(f"is not UTF-8: {error.reason} at byte {error.start}", where=str(path), cure=cure) from error
    except (ValueError, RecursionError) as error:
        raise StageError(f"is not JSON: {error}", where=str(path), cure="mend it, or invoke.file=<another>") from error
    if not isinstance(body, dict):
        cure = 'write {"messages": [{"role": "user", "content": "…"}]}'
        raise StageError("holds no JSON object", where=str(path), cure=cure)
    return body


def question_in(payload: Mapping[str, Any]) -> str:
    """What a request asks, for the user: its prompt, its last message's text, or the beginning of whatever it holds."""
    messages = payload.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else payload.get("prompt", payload.get("input"))
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if isinstance(content, str) and content:
        return content
    text = json.dumps(payload, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"
