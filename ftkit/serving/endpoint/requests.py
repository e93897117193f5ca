"""What is asked of the endpoint: every check that a request goes through before a model sees it.

A request is in ftkit's own format, or, if it names a ``model``, in that of OpenAI's chat completions.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = (
    *("messages", "prompt", "max_new_tokens", "temperature", "top_p", "seed", "reasoning_effort", "stop"),
    "stream",
)
OPENAI_FIELDS = (
    *("model", "messages", "max_completion_tokens", "max_tokens", "temperature", "top_p", "seed", "reasoning_effort"),
    *("stop", "stream", "stream_options"),
)
OPENAI_FIXED: dict[str, Any] = {
    **{"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "logit_bias": {}, "tools": []},
    **{"tool_choice": "none", "modalities": ["text"], "response_format": {"type": "text"}},
}
"""Fields of OpenAI's format that are taken with this value alone."""
OPENAI_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"),
    "verbosity",
)
SETTINGS = (
    "FTKIT_MAX_NEW_TOKENS",
    "FTKIT_MAX_INPUT_TOKENS",
    "FTKIT_MAX_CONCURRENT_REQUESTS",
    "FTKIT_BATCH_SIZE",
    "SCORING_TIMEOUT_MS",
    "FTKIT_BODY_TIMEOUT_MS",
    "FTKIT_HEADER_TIMEOUT_MS",
)
SPARE_THREADS = 200
"""Of a server, beside one for each request in hand: for health, for those too many, for bodies that come slowly."""
ROLES = ("system", "developer", "user", "assistant")
EFFORTS = ("low", "medium", "high")
EXAMPLE = '{"messages": [{"role": "user", "content": "…"}], "max_new_tokens": 500}'
SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
LONGEST_TOKEN = 128
"""Characters of o200k_harmony's longest token: a text that must be too long is refused before it is tokenized."""


class ModelError(Exception):
    """The model cannot be served; the message is one line for the log."""


class Refused(Exception):
    """A request that gets a 4xx: what is wrong and what to send, in which field of it, and the HTTP status."""

    def __init__(self, message: str, field: str = "", status: int = 400):
        super().__init__(message)
        self.message, self.field, self.status = message, field, status


class Limits(NamedTuple):
    """What one process takes on; each field is set by the environment variable of its name, ``FTKIT_`` before it.

    Attributes:
        max_new_tokens, max_input_tokens: tokens of one request.
        concurrent_requests: that are in hand; a further one gets a 429.
        batch_size: requests that go through the model together, the others wait their turn.
        timeout_ms: milliseconds that a request may take; set by ``SCORING_TIMEOUT_MS``.
        body_timeout_ms: milliseconds that its body may take to arrive.
        header_timeout_ms: milliseconds that its headers may; kept by ``ftkit.serving.local_worker`` alone.
    """

    max_new_tokens: int = 4096
    max_input_tokens: int = 8192
    concurrent_requests: int = 32
    batch_size: int = 32
    timeout_ms: int = 180_000
    body_timeout_ms: int = 30_000
    header_timeout_ms: int = 30_000

    @property
    def body_bytes(self) -> int:
        """Of a longer body it is certain that it has too many tokens."""
        return self.max_input_tokens * LONGEST_TOKEN * 6 + 65_536  # a character may be written in six, as \\u3042

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Limits:
        for name in SETTINGS:
            if not re.fullmatch(r"[1-9]\d{0,11}", environment.get(name, "1")):
                raise ModelError(f"{name}={environment[name]!r} in the environment; it takes a positive whole number")
        return cls(*(int(environment.get(name, usual)) for name, usual in zip(SETTINGS, cls(), strict=True)))


class TrainedWith(NamedTuple):
    """What ``ftkit.json`` beside the weights tells: what the training put around a question; a prompt gets the same."""

    name: str = ""  # of the model
    system: str = ""
    reasoning_effort: str = "medium"
    current_date: str = ""  # YYYY-MM-DD; today if empty

    @classmethod
    def read(cls, folder: Path) -> TrainedWith:
        try:
            found = json.loads((folder / "ftkit.json").read_text(encoding="utf-8"))
            return cls(**{field: found[field] for field in cls._fields if found.get(field)})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder / 'ftkit.json'} cannot be read: {error}") from error


class Request(NamedTuple):
    """A request that has passed every check that needs no tokenizer."""

    messages: list[dict[str, str]]
    max_new_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    reasoning_effort: str = "medium"
    stop: tuple[str, ...] = ()
    given: str = "messages"  # or prompt: the field that the chat came in
    stream: bool = False
    include_usage: bool = False
    model: str = ""  # as asked for in OpenAI's format, which the answer then has


def parse_request(raw: str | bytes, limits: Limits, trained: TrainedWith) -> Request:
    """Check a request's body field by field; null counts as not given.

    Raises:
        Refused: with the first thing that is wrong, its field, and what to send instead.
    """
    body = _json_object(raw)
    openai = "model" in body
    _check_names(body, OPENAI_FIELDS if openai else FIELDS, openai)
    body = {name: value for name, value in body.items() if value is not None}
    effort = body.get("reasoning_effort", trained.reasoning_effort)
    if effort not in EFFORTS:
        raise Refused(f"reasoning_effort is {_shown(effort)}; send one of {', '.join(EFFORTS)}", "reasoning_effort")
    length = "max_new_tokens"
    if openai:
        length = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    longest = limits.max_new_tokens
    return Request(
        messages=_messages(body, limits, trained, openai),
        max_new_tokens=_number(body, length, min(512, longest), 1, longest, whole=True),
        temperature=_number(body, "temperature", 0.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=_number(body, "seed", None, 0, 2**63 - 1, whole=True),
        reasoning_effort=effort,
        stop=_stop(body.get("stop", []), openai),
        given="prompt" if "prompt" in body else "messages",
        stream=_flag(body.get("stream", False), "stream"),
        include_usage=_include_usage(body.get("stream_options", {})),
        model=_text(body["model"], "model") if openai and "model" in body else "",
    )


def _check_names(body: Mapping[str, Any], fields: tuple[str, ...], openai: bool) -> None:
    for name, value in body.items():
        if name in fields or (openai and (name in OPENAI_IGNORED or value in (None, OPENAI_FIXED.get(name)))):
            continue
        if openai and name in OPENAI_FIXED:
            raise Refused(f"{name} is {_shown(value)}; it can only be {_shown(OPENAI_FIXED[name])} here", name)
        near = difflib.get_close_matches(name[:64], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
        raise Refused(f"unknown field {_shown(name)}; {hint}", name[:64])


def _json_object(raw: str | bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for name, value in pairs:
            if name in built:
                raise Refused(f"{_shown(name)} is given twice", name[:64])
            built[name] = value
        return built

    try:
        body = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON ({error}); send {EXAMPLE}") from error
    if not isinstance(body, dict):
        raise Refused(f"the body is {_shown(body)}, not an object; send {EXAMPLE}")
    return body


def _messages(body: Mapping[str, Any], limits: Limits, trained: TrainedWith, openai: bool) -> list[dict[str, str]]:
    """The chat: ``messages`` as they are, or ``prompt`` behind the training's system message."""
    given = [name for name in ("prompt", "messages") if name in body]
    if len(given) != 1:
        said = "prompt and messages are both" if given else "neither prompt nor messages is"
        raise Refused(f"{said} given; send one of them, as in {EXAMPLE}", "messages")
    if given == ["prompt"]:
        system = [{"role": "system", "content": trained.system}] if trained.system else []
        messages = [*system, {"role": "user", "content": _text(body["prompt"], "prompt")}]
    else:
        messages = _chat([_plain(message) for message in _listed(body)] if openai else body["messages"])
    if sum(len(message["content"]) for message in messages) > limits.max_input_tokens * LONGEST_TOKEN:
        raise Refused(f"{given[0]} is too long: at most {limits.max_input_tokens} tokens are taken", given[0])
    return messages


def _listed(body: Mapping[str, Any]) -> list[Any]:
    messages = body["messages"]
    return messages if isinstance(messages, list) else [messages]


def _plain(message: Any) -> Any:
    """A message of OpenAI's format as one of ours: role and content, which may be in parts of text.

    An earlier answer's thinking and names are left out, as the chat template does.
    """
    if not isinstance(message, dict):
        return message
    unused = ("name", "refusal", "reasoning", "reasoning_content")
    kept = {name: value for name, value in message.items() if value is not None and name not in unused}
    parts = kept.get("content")
    if isinstance(parts, list) and parts and all(_is_text_part(part) for part in parts):
        kept["content"] = "".join(part["text"] for part in parts)
    return kept


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _chat(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise Refused(f"messages is {_shown(messages)}; send a list of messages, as in {EXAMPLE}", "messages")
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise Refused(f'{at} is {_shown(message)}; send {{"role": "user", "content": "…"}} and no other field', at)
        role = message["role"]
        if role not in ROLES:
            raise Refused(f"{at}.role is {_shown(role)}; send one of {', '.join(ROLES)}", f"{at}.role")
        if i and role in ("system", "developer"):
            raise Refused(
                f"{at}.role is {role}: only the first message may be, a later one would be lost", f"{at}.role"
            )
        _text(message["content"], f"{at}.content")
    last = messages[-1]["role"]
    if last != "user":
        field = f"messages[{len(messages) - 1}].role"
        raise Refused(f"the last message is from {last}; the one to be answered comes from user", field)
    return messages


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{field} is {_shown(value)}; send text", field)
    if found := SPECIAL_TOKEN.search(value):
        raise Refused(f"{field} holds the special token {found.group()}, which would forge a message", field)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused(f"{field} holds half a surrogate pair, which is no text", field)
    return value


def _number(body: Mapping[str, Any], field: str, usual: Any, low: int, high: int, *, whole: bool = False) -> Any:
    value = body.get(field, usual)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if field in body and not (number and low <= value <= high):  # NaN is in no range
        raise Refused(f"{field} is {_shown(value)}; send a {'whole ' * whole}number from {low} to {high}", field)
    return value


def _stop(stop: Any, openai: bool) -> tuple[str, ...]:
    if openai and isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list) or len(stop) > 8 or not all(isinstance(text, str) and text for text in stop):
        raise Refused(f"stop is {_shown(stop)}; send a list of at most 8 texts", "stop")
    return tuple(stop)


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"{field} is {_shown(value)}; send true or false", field)
    return value


def _include_usage(options: Any) -> bool:
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise Refused(f'stream_options is {_shown(options)}; send {{"include_usage": true}}', "stream_options")
    return _flag(options.get("include_usage") or False, "stream_options.include_usage")


def _shown(value: Any) -> str:
    """A value for an error message, cut to a sensible length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:45]}…"
