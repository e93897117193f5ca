"""What goes back to the client: whole or as server-sent events, in ftkit's format or in OpenAI's two."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.chat.harmony_parse import Completion
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request
from ftkit.serving.endpoint.response_answers import Responses

if TYPE_CHECKING:
    from ftkit.serving.endpoint.answering import Answering

OPENAI_NAMES = {"thinking": "reasoning_content", "output": "content"}
SLOW_S = 30.0
"""How long after a request's time limit a client may still be reading the stream of its answer."""
ERROR_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


def describe(
    completion: Completion, request: Request, prompt_tokens: int, completion_tokens: int, max_new_tokens: int
) -> dict[str, Any]:
    """The answer in ftkit's format; ``note`` says why something is missing, and has what stands in no other field."""
    cut = first_of(completion.output, request.stop)
    stopped = completion.ended or cut is not None
    calls = [_tool_call(call.name, call.arguments) for call in completion.calls]
    notes = []
    if not stopped:
        full = completion_tokens >= max_new_tokens
        length = request.length or ("max_tokens" if request.openai else "max_new_tokens")
        notes.append(f"cut off by {f'{length}={max_new_tokens}' if full else 'the time for one request'}")
    if not completion.output and not calls:
        notes.append("the model ended without a final answer" if stopped else "the final answer had not begun")
    notes += [f"{where}: {text}" for where, text in completion.rest]
    ended = "tool_calls" if calls and cut is None else "stop"
    answer: dict[str, Any] = {
        "output": completion.output[:cut],
        "thinking": completion.thinking,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        "finish_reason": ended if stopped else "length",
    }
    return answer | ({"tool_calls": calls} if calls else {}) | ({"note": "; ".join(notes)} if notes else {})


def _tool_call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def first_of(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest of the stop texts begins."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


def body(request: Request, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The body of whole answers.

    Args:
        answers: in ftkit's format, as many as the request asks for.
    """
    if not request.openai:
        return answers[0]
    if request.response is not None:
        return Responses(request).body(answers[0])
    choices = [_choice(index, answer) for index, answer in enumerate(answers)]
    whole = OpenAI(request).heading("chat.completion") | {"choices": choices, "usage": total(answers)}
    notes = dict.fromkeys(answer["note"] for answer in answers if "note" in answer)
    return whole | ({"note": "; ".join(notes)} if notes else {})


def _choice(index: int, answer: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant"} | {name: answer[kind] for kind, name in OPENAI_NAMES.items()}
    if calls := answer.get("tool_calls"):
        message |= {"content": answer["output"] or None, "tool_calls": calls}
    logprobs = _logprobs(answer.get("logprobs"))
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer["finish_reason"]}


def _logprobs(content: list[Any] | None) -> dict[str, Any] | None:
    return None if content is None else {"content": content, "refusal": None}


def error_body(error: Refused) -> dict[str, Any]:
    """The body of a refusal: the message, and the field that is wrong under ftkit's name and OpenAI's."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    named = {"message": error.message, "field": error.field, "type": kind, "param": error.field or None}
    return {"error": named | {"code": error.code}}


def events(answerings: Sequence[Answering], gone: Callable[[], bool]) -> Iterator[str]:
    """The answers as server-sent events while they are generated.

    Args:
        answerings: one, or as many as the request asks for.
        gone: whether the client has gone, which ends it.
    """
    first = answerings[0]
    form = _form(first.request)
    try:
        yield from map(_event, form.opening())
        for index, kind, text in _pieces(answerings, gone):
            yield from map(_event, form.pieces(index, kind, text, answerings[index].logprobs))
            if time.monotonic() > first.job.deadline + SLOW_S:  # sent to a client that reads a byte now and then
                return
        yield from map(_event, form.closing([answering.result() for answering in answerings]))
    except Refused as error:
        yield _event(form.error(error))


def _form(request: Request) -> Own | OpenAI | Responses:
    if request.response is not None:
        return Responses(request)
    return OpenAI(request) if request.openai else Own()


def _pieces(answerings: Sequence[Answering], gone: Callable[[], bool]) -> Iterator[tuple[int, str, str]]:
    """Pieces of all of them in turn, each with whose it is: the engine answers them together."""
    running = {index: answering.pieces(gone) for index, answering in enumerate(answerings)}
    while running:
        for index, pieces in list(running.items()):
            if piece := next(pieces, None):
                yield index, *piece
            else:
                del running[index]


def _event(data: dict[str, Any] | str) -> str:
    """An event of the Responses API has its type as its name."""
    if isinstance(data, str):
        return f"data: {data}\n\n"
    name = f"event: {data['type']}\n" if "sequence_number" in data else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class Own:
    """Pieces of ``thinking`` and ``output``; the last event has what the whole answer has beside them."""

    def opening(self) -> list[dict[str, Any] | str]:
        return []

    def pieces(self, index: int, kind: str, text: str, logprobs: Callable[[int], list[Any]]) -> list[dict[str, Any]]:
        return [{kind: text}]

    def closing(self, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any] | str]:
        return [{name: value for name, value in answers[0].items() if name not in OPENAI_NAMES}]

    def error(self, error: Refused) -> dict[str, Any]:
        return error_body(error)


class OpenAI:
    """Chunks of a chat completion; the thinking is in ``reasoning_content``, a call of a tool comes whole."""

    def __init__(self, request: Request):
        self._request = request
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._sent = dict.fromkeys(range(request.n), 0)  # characters of each output

    def heading(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def opening(self) -> list[dict[str, Any] | str]:
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in self._sent]

    def pieces(self, index: int, kind: str, text: str, logprobs: Callable[[int], list[Any]]) -> list[dict[str, Any]]:
        if kind != "output" or self._request.likeliest is None:
            return [self._chunk(index, {OPENAI_NAMES[kind]: text})]
        self._sent[index] += len(text)
        return [self._chunk(index, {OPENAI_NAMES[kind]: text}, logprobs=_logprobs(logprobs(self._sent[index])))]

    def closing(self, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any] | str]:
        last: list[dict[str, Any] | str] = []
        for index, answer in enumerate(answers):
            if calls := [{"index": i} | call for i, call in enumerate(answer.get("tool_calls", ()))]:
                last.append(self._chunk(index, {"tool_calls": calls}))
            note = {"note": answer["note"]} if "note" in answer else {}
            last.append(self._chunk(index, {}, answer["finish_reason"]) | note)
        usage = self.heading("chat.completion.chunk") | {"choices": [], "usage": total(answers)}
        return [*last, usage, "[DONE]"] if self._request.include_usage else [*last, "[DONE]"]

    def error(self, error: Refused) -> dict[str, Any]:
        return error_body(error)

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self.heading("chat.completion.chunk") | {"choices": [choice]}


def total(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The usage of a request's answers; its prompt counts once."""
    prompt = answers[0]["usage"]["prompt_tokens"]
    completion = sum(answer["usage"]["completion_tokens"] for answer in answers)
    details = {"reasoning_tokens": sum(answer["reasoning_tokens"] for answer in answers)}
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counted | {"completion_tokens_details": details}
