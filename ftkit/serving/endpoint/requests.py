"""What is asked of the endpoint: every check that a request goes through before a model sees it.

A request is in ftkit's own format, or in that of OpenAI's chat completions or Responses API. ``/v1/…`` always speaks
OpenAI's; at ``/score`` a body with the key ``model`` does, and one with ``input`` as well is of the Responses API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ftkit.chat.messages import EFFORTS
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.serving.endpoint.azure_shapes import NAMES as AZURE_NAMES
from ftkit.serving.endpoint.azure_shapes import in_own_format
from ftkit.serving.endpoint.bodies import read_object
from ftkit.serving.endpoint.chats import Texts, Turn, read_chat, read_tools
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.refusals import VLLM_TAKES_IT, Refused, hint, shown
from ftkit.serving.endpoint.responses import AsChat, is_response
from ftkit.serving.endpoint.sampling import SETTINGS

FIELDS = (
    *("messages", "prompt", "max_new_tokens", "temperature", "top_p", "seed", "reasoning_effort", "stop"),
    *("stream", "tools", "tool_choice"),
)
OPENAI_FIELDS = (
    *("model", "messages", "max_completion_tokens", "max_tokens", "temperature", "top_p", "seed", "reasoning_effort"),
    *("stop", "stream", "stream_options", "tools", "tool_choice", "n", "logprobs", "top_logprobs"),
)
OPENAI_HARMLESS: dict[str, tuple[Any, ...]] = {
    **{"best_of": (1,), "modalities": (["text"],), "response_format": ({"type": "text"},), "length_penalty": (1,)},
    **{
        "min_tokens": (0,),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "ignore_eos": (False,),
        "stop_token_ids": ([],),
    },
    **{"include_reasoning": (True,), "echo": (False,), "chat_template_kwargs": ({},), "bad_words": ([],)},
    **{"add_generation_prompt": (True,), "continue_final_message": (False,), "skip_special_tokens": (True,)},
    **{"structured_outputs": ({},), "guided_json": (), "guided_regex": (), "guided_choice": (), "prediction": ()},
    **{"audio": (), "web_search_options": (), "documents": ([],), "use_beam_search": (False,)},
}
"""Fields of OpenAI's format, and of vLLM's, that this server takes with these values alone."""
OPENAI_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity", "request_id", "priority", "cache_salt", "extra_body"),
)
MEANT = {
    **{"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "max_token": "max_new_tokens"},
    **{"input": "prompt", "query": "prompt", "text": "prompt"},
}
OPENAI_MEANT = {"max_new_tokens": "max_tokens", "prompt": "messages", "input": "messages", "max_token": "max_tokens"}
"""What names of other APIs are called here."""
RANGES = {
    **{"top_k": (-1, 2**31), "min_p": (0, 1), "repetition_penalty": (0, 2)},
    **{"frequency_penalty": (-2, 2), "presence_penalty": (-2, 2)},
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{"top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,), "frequency_penalty": (0,)},
    **{"presence_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},)},
}
MOST_ANSWERS = 128
"""To one request, as in OpenAI's format."""
USUAL_LENGTH = 512
"""Tokens of an answer where ``max_new_tokens`` is not given; in OpenAI's format it is as many as there is room for."""


class Sampling(NamedTuple):
    """How OpenAI's format samples where a request does not say: by the model's ``generation_config.json``."""

    temperature: float = 1.0
    top_p: float = 1.0


class Rules(NamedTuple):
    """What a request is held against.

    Attributes:
        limits: of the process.
        defaults: what the training put around a question.
        special: finds special tokens of the model's vocabulary in a text.
        sampling: of OpenAI's format.
        passed_on: further fields of OpenAI's format that the engine takes.
    """

    limits: Limits
    defaults: ServingDefaults = ServingDefaults()
    special: re.Pattern[str] = re.compile("(?!)")
    sampling: Sampling = Sampling()
    passed_on: Sequence[str] = SETTINGS


class Request(NamedTuple):
    """A request that has passed every check that needs no tokenizer.

    Attributes:
        messages: for the chat template.
        tools: for the chat template.
        max_new_tokens: None for as many as there is room for.
        given: the field that the chat came in: ``messages`` or ``prompt``.
        length: the field that a length was given in; empty if none was.
        model: as asked for; may be empty.
        openai: whether the answer is in OpenAI's format.
        more: fields that are passed on to the engine.
        n: answers that are asked for.
        likeliest: how many likeliest tokens come with each of the output, with log-probabilities; None for none.
        response: what a response of the Responses API repeats of its request; None in other formats.
    """

    messages: list[Turn]
    tools: Sequence[dict[str, Any]] = ()
    max_new_tokens: int | None = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    reasoning_effort: str = "medium"
    stop: tuple[str, ...] = ()
    given: str = "messages"
    length: str = ""
    stream: bool = False
    include_usage: bool = False
    model: str = ""
    openai: bool = False
    more: Mapping[str, Any] = MappingProxyType({})
    n: int = 1
    likeliest: int | None = None
    response: Mapping[str, Any] | None = None


def parse_request(
    raw: str | bytes, rules: Rules, *, openai: bool = False, responses: bool = False, content_encoding: str = ""
) -> Request:
    """Check a request's body field by field; null counts as not given.

    Args:
        raw: the body.
        openai: whether its path speaks OpenAI's chat completions alone.
        responses: whether its path speaks OpenAI's Responses API alone.
        content_encoding: the header of that name.

    Raises:
        Refused: with the first thing that is wrong, its field, and what to send instead.
    """
    body = read_object(raw, content_encoding)
    given = {name: value for name, value in body.items() if value is not None}
    if responses or (not openai and is_response(body)):
        chat = AsChat(given)
        try:
            return _parsed(chat.body, rules, openai=True)._replace(response=chat.repeated)
        except Refused as error:
            raise chat.renamed(error) from error
    return _parsed(given, rules, openai=openai or "model" in body)


def _parsed(body: dict[str, Any], rules: Rules, *, openai: bool) -> Request:
    if openai:
        body = _azure_shape_as_openai(body, rules.defaults) if "messages" not in body else body
        _check_openai_names(body, rules.passed_on)
    else:
        body = in_own_format(body)
        _check_own_names(body)
    limits, defaults = rules.limits, rules.defaults
    effort = body.get("reasoning_effort", defaults.reasoning_effort)
    if effort not in EFFORTS:
        said = f"reasoning_effort is {shown(effort)}; send one of {', '.join(EFFORTS)}"
        raise Refused(said, "reasoning_effort")
    texts = Texts(rules.special, limits.characters)
    sampling = rules.sampling if openai else Sampling(0.0, 1.0)
    length, longest = _length(body, limits, openai)
    return Request(
        messages=_messages(body, texts, limits, defaults, openai),
        tools=read_tools(body.get("tools", []), body.get("tool_choice"), texts),
        max_new_tokens=longest,
        temperature=_number(body, "temperature", sampling.temperature, 0, 2),
        top_p=_number(body, "top_p", sampling.top_p, 0, 1),
        seed=_number(body, "seed", None, -(2**63), 2**63 - 1, whole=True),
        reasoning_effort=effort,
        stop=_stop(body.get("stop", [])),
        given="prompt" if "prompt" in body else "messages",
        length=length,
        stream=_flag(body.get("stream", False), "stream"),
        include_usage=_include_usage(body.get("stream_options", {})),
        model=_model(body.get("model", "")),
        openai=openai,
        more=_more(body, rules.passed_on) if openai else {},
        n=_number(body, "n", 1, 1, min(MOST_ANSWERS, limits.concurrent_requests), whole=True),
        likeliest=_likeliest(body),
    )


def _azure_shape_as_openai(body: Mapping[str, Any], defaults: ServingDefaults) -> dict[str, Any]:
    """One of Azure ML's bodies at OpenAI's path; any other as it is."""
    if not any(name in body for name in AZURE_NAMES):
        return dict(body)
    asked = in_own_format(body)
    if "prompt" in asked:
        system = [{"role": "system", "content": defaults.system}] if defaults.system else []
        asked["messages"] = [*system, {"role": "user", "content": asked.pop("prompt")}]
    if "max_new_tokens" in asked:
        asked["max_tokens"] = asked.pop("max_new_tokens")
    return asked


def _check_own_names(body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in FIELDS:
            said = f"did you mean {MEANT[name]}?" if name in MEANT else hint(name, FIELDS, FIELDS)
            raise Refused(f"unknown field {shown(name)}; {said}", name[:64])


def _check_openai_names(body: Mapping[str, Any], passed_on: Sequence[str]) -> None:
    for name, value in body.items():
        if name in OPENAI_FIELDS or name in OPENAI_IGNORED or name in passed_on:
            continue
        if name in OPENAI_HARMLESS:
            harmless = OPENAI_HARMLESS[name]
            if any(_same(value, each) for each in harmless):
                continue
            only = f"takes {' or '.join(map(shown, harmless))} alone" if harmless else "does not have it"
            raise Refused(
                f"{name} is {shown(value)}; this server {only}; {VLLM_TAKES_IT}", name, code="unsupported_value"
            )
        known = (*OPENAI_FIELDS, *OPENAI_HARMLESS, *OPENAI_IGNORED)
        said = f"did you mean {OPENAI_MEANT[name]}?" if name in OPENAI_MEANT else hint(name, known, OPENAI_FIELDS)
        raise Refused(f"unknown field {shown(name)}; {said}", name[:64], code="unknown_parameter")


def _same(value: Any, harmless: Any) -> bool:
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _messages(
    body: Mapping[str, Any], texts: Texts, limits: Limits, defaults: ServingDefaults, openai: bool
) -> list[Turn]:
    """The chat: ``messages`` as they are, or ``prompt`` behind the training's system message."""
    given = [name for name in ("prompt", "messages") if name in body]
    if len(given) != 1:
        length = "max_tokens" if openai else "max_new_tokens"
        example = f'{{"messages": [{{"role": "user", "content": "…"}}], "{length}": 500}}'
        neither = (
            "messages is not given; send them" if openai else "neither prompt nor messages is given; send one of them"
        )
        said = "prompt and messages are both given; send one of them" if given else neither
        raise Refused(f"{said}, as in {example}", "messages")
    if given == ["messages"]:
        return read_chat(body["messages"], texts, limits.messages)
    system = [{"role": "system", "content": defaults.system}] if defaults.system else []
    return [*system, {"role": "user", "content": texts.take(body["prompt"], "prompt")}]


def _length(body: Mapping[str, Any], limits: Limits, openai: bool) -> tuple[str, int | None]:
    """The field that says how long the answer may get, and the tokens; OpenAI's is cut to the endpoint's limit."""
    if openai:
        name = next((name for name in ("max_completion_tokens", "max_tokens", "max_new_tokens") if name in body), "")
        asked = _number(body, name, None, 1, 2**31, whole=True)
        return name, asked and min(asked, limits.max_new_tokens)
    name, longest = "max_new_tokens", limits.max_new_tokens
    tokens = _number(body, name, min(USUAL_LENGTH, longest), 1, longest, whole=True)
    return name if name in body else "", tokens


def _number(body: Mapping[str, Any], field: str, usual: Any, low: int, high: int, *, whole: bool = False) -> Any:
    value = body.get(field, usual)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if field in body and not (number and low <= value <= high):  # NaN is in no range
        raise Refused(f"{field} is {shown(value)}; send a {'whole ' * whole}number from {low} to {high}", field)
    return value


def _more(body: Mapping[str, Any], passed_on: Sequence[str]) -> dict[str, Any]:
    """The fields that go to the engine; those that change nothing do not."""
    for name, (low, high) in RANGES.items():
        _number(body, name, None, low, high, whole=name == "top_k")
    if body.get("repetition_penalty") == 0:
        raise Refused("repetition_penalty is 0; send a number above 0, 1 for none", "repetition_penalty")
    bias = body.get("logit_bias", {})
    if not isinstance(bias, dict) or not all(_is_bias(token, value) for token, value in bias.items()):
        raise Refused(f'logit_bias is {shown(bias)}; send token ids with -100 to 100, {{"50256": -100}}', "logit_bias")
    return {name: body[name] for name in passed_on if name in body and body[name] not in NEUTRAL.get(name, ())}


def _is_bias(token: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return re.fullmatch(r"\d{1,9}", token, re.ASCII) is not None and number and -100 <= value <= 100


def _likeliest(body: Mapping[str, Any]) -> int | None:
    """How many likeliest tokens to give with each; None where log-probabilities are not asked for."""
    asked, most = _flag(body.get("logprobs", False), "logprobs"), _number(body, "top_logprobs", 0, 0, 20, whole=True)
    if most and not asked:
        raise Refused(f'top_logprobs is {most} without logprobs; send "logprobs": true as well', "top_logprobs")
    return most if asked else None


def _stop(stop: Any) -> tuple[str, ...]:
    stop = [stop] if isinstance(stop, str) else stop
    listed = isinstance(stop, list) and len(stop) <= 8
    if not listed or not all(isinstance(text, str) and 0 < len(text) <= 1024 for text in stop):
        raise Refused(f"stop is {shown(stop)}; send a list of at most 8 texts", "stop")
    return tuple(stop)


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"{field} is {shown(value)}; send true or false", field)
    return value


def _model(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(f"model is {shown(value)}; send text", "model")
    return value


def _include_usage(options: Any) -> bool:
    known = {"include_usage", "include_obfuscation", "continuous_usage_stats"}
    if not isinstance(options, dict) or options.keys() - known:
        raise Refused(f'stream_options is {shown(options)}; send {{"include_usage": true}}', "stream_options")
    return _flag(options.get("include_usage") or False, "stream_options.include_usage")
