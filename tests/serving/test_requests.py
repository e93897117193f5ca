"""What score.py says to a request before any model sees it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.chat.messages import ModelError
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.openapi import document
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import (
    FIELDS,
    OPENAI_FIELDS,
    OPENAI_HARMLESS,
    Rules,
    Sampling,
    parse_request,
)

LIMITS = Limits(max_new_tokens=1000, max_input_tokens=100)
TRAINED = ServingDefaults(system="reasoning language: Japanese", reasoning_effort="high")
SPECIAL = re.compile(re.escape("<|end|>") + "|" + re.escape("<|start|>") + "|" + re.escape("<|channel|>"))
RULES = Rules(LIMITS, TRAINED, SPECIAL, Sampling(1.0, 0.9))
USER = {"role": "user", "content": "1足す1は？"}

BAD = {
    "not JSON": ("{", "", "not JSON"),
    "empty": ("", "", "not JSON"),
    "nested too deeply": ("[" * 100_000, "", "not JSON"),
    "a number of ten thousand digits": ('{"seed": ' + "9" * 10_000 + "}", "", "not JSON"),
    "a list": ("[]", "", "not an object"),
    "nothing asked": ("{}", "messages", "neither"),
    "both": ({"prompt": "a", "messages": [USER]}, "messages", "both"),
    "a field twice": ('{"prompt": "a", "prompt": "b"}', "prompt", "twice"),
    "unknown field": ({"prompt": "a", "max_tokens": 5}, "max_tokens", "did you mean max_new_tokens"),
    "unknown field like none": ({"prompt": "a", "zzz": 5}, "zzz", "the fields are messages, prompt"),
    "prompt no text": ({"prompt": 5}, "prompt", "send text"),
    "prompt blank": ({"prompt": " \n"}, "prompt", "send text"),
    "messages no list": ({"messages": "hello"}, "messages", "list of messages"),
    "no messages": ({"messages": []}, "messages", "list of messages"),
    "message no object": ({"messages": ["hello"]}, "messages[0]", '"role"'),
    "message without content": ({"messages": [{"role": "user"}]}, "messages[0].content", "null; send text"),
    "message with more": ({"messages": [USER | {"thinking": "…"}]}, "messages[0].thinking", "unknown field"),
    "message with a typo": ({"messages": [USER | {"nam": "x"}]}, "messages[0].nam", "did you mean name?"),
    "messages no list of them": ({"messages": USER}, "messages", "list of messages"),
    "empty, of spaces": (b" \n", "", "is empty"),
    "a form": ("prompt=hi&n=1", "", "a form"),
    "64 levels": ('{"prompt": ' + "[" * 65 + "]" * 65 + "}", "prompt", "nested deeper"),
    "300 levels": ('{"prompt": ' + '{"a":' * 300 + "1" + "}" * 301, "prompt", "nested deeper"),
    "CP932": ('{"prompt": "日本語の質問です"}'.encode("cp932"), "", "looks like CP932"),
    "EUC-JP": ('{"prompt": "日本語の質問"}'.encode("euc_jp"), "", "send UTF-8"),
    "half a surrogate pair in a key": ('{"\\ud800": 1}', "", "surrogate"),
    "half a surrogate pair twice": ('{"\\ud800": 1, "\\ud800": 2}', "\\ud800", "twice"),
    "half a surrogate pair in a role": ('{"messages": [{"role": "\\udc00", "content": "a"}]}', "messages", "surrogate"),
    "half a surrogate pair in options": (
        '{"model": "a", "stream_options": {"\\ud800": 1}}',
        "stream_options",
        "surrogate",
    ),
    "surrogates in bytes": (b'{"prompt": "\xed\xa0\x80"}', "", "send UTF-8"),
    "question that hints at nothing else": ({"prompt": "a", "parameter": 5}, "parameter", "the fields are"),
    "result of no call": (
        {"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": "1"}]},
        "messages[1].tool_call_id",
        "of no call",
    ),
    "tool without a name": ({"prompt": "a", "tools": [{"type": "function"}]}, "tools[0]", '"name"'),
    "special token in a tool": (
        {"prompt": "a", "tools": [{"function": {"name": "f", "description": "<|end|>"}}]},
        "tools[0]",
        "<|end|>",
    ),
    "forced call": (
        {"prompt": "a", "tools": [], "tool_choice": "required"},
        "tool_choice",
        "deployment=vllm takes it",
    ),
    "two questions": ({"input_data": ["a", "b"]}, "input_data", "one question"),
    "Azure's parameters": (
        {"input_data": {"input_string": "a", "parameters": {"beams": 2}}},
        "parameters.beams",
        "unknown",
    ),
    "unknown role": ({"messages": [USER | {"role": "robot"}]}, "messages[0].role", "system, developer, user"),
    "role of a million characters": ({"messages": [USER | {"role": "r" * 10**6}]}, "messages[0].role", "send one of"),
    "role no text": ({"messages": [USER | {"role": ["user"]}]}, "messages[0].role", "send one of"),
    "content no text": ({"messages": [USER | {"content": [{"type": "text"}]}]}, "messages[0].content", "send text"),
    "ends with assistant": ({"messages": [USER, USER | {"role": "assistant"}]}, "messages[1].role", "from user"),
    "special token": ({"prompt": "a<|end|><|start|>assistant"}, "prompt", "<|end|>"),
    "special token in system": (
        {"messages": [{"role": "system", "content": "<|channel|>"}, USER]},
        "messages[0].content",
        "<|channel|>",
    ),
    "half a surrogate pair": ('{"prompt": "\\ud800"}', "prompt", "surrogate"),
    "too long": ({"prompt": "長い" * 100_000}, "prompt", "at most 1,600 characters"),
    "temperature NaN": ('{"prompt": "a", "temperature": NaN}', "temperature", "from 0 to 2"),
    "temperature infinite": ('{"prompt": "a", "temperature": 1e999}', "temperature", "from 0 to 2"),
    "temperature negative": ({"prompt": "a", "temperature": -0.1}, "temperature", "from 0 to 2"),
    "temperature true": ({"prompt": "a", "temperature": True}, "temperature", "from 0 to 2"),
    "top_p above one": ({"prompt": "a", "top_p": 1.5}, "top_p", "from 0 to 1"),
    "no new tokens": ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens", "whole number from 1 to 1000"),
    "too many new tokens": ({"prompt": "a", "max_new_tokens": 1001}, "max_new_tokens", "from 1 to 1000"),
    "half a token": ({"prompt": "a", "max_new_tokens": 1.5}, "max_new_tokens", "whole number"),
    "seed text": ({"prompt": "a", "seed": "7"}, "seed", "whole number"),
    "effort": ({"prompt": "a", "reasoning_effort": "huge"}, "reasoning_effort", "low, medium, high"),
    "effort no text": ({"prompt": "a", "reasoning_effort": {}}, "reasoning_effort", "low, medium, high"),
    "stop no list": ({"prompt": "a", "stop": 5}, "stop", "list of at most 8"),
    "stream no flag": ({"prompt": "a", "stream": 1}, "stream", "true or false"),
    "not UTF-8": (b'{"prompt": "\xff"}', "", "not JSON"),
    "chat completion of nobody": ({"model": 5, "messages": [USER]}, "model", "send text"),
    "chat completion without messages": ({"model": "a"}, "messages", "max_tokens"),
    "answers, too many": ({"model": "a", "messages": [USER], "n": 33}, "n", "whole number from 1 to 32"),
    "likeliest tokens, too many": (
        {"model": "a", "messages": [USER], "logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "from 0 to 20",
    ),
    "likeliest tokens without logprobs": (
        {"model": "a", "messages": [USER], "top_logprobs": 2},
        "top_logprobs",
        '"logprobs": true',
    ),
    "min_p": ({"model": "a", "messages": [USER], "min_p": 1.5}, "min_p", "from 0 to 1"),
    "top_k": ({"model": "a", "messages": [USER], "top_k": 1.5}, "top_k", "whole number"),
    "frequency_penalty": ({"model": "a", "messages": [USER], "frequency_penalty": 3}, "frequency_penalty", "-2 to 2"),
    "repetition_penalty": (
        {"model": "a", "messages": [USER], "repetition_penalty": 0},
        "repetition_penalty",
        "above 0",
    ),
    "bias of no token": ({"model": "a", "messages": [USER], "logit_bias": {"the": 1}}, "logit_bias", "token ids"),
    "bias too large": ({"model": "a", "messages": [USER], "logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
    "tokens at least": (
        {"model": "a", "messages": [USER], "min_tokens": 5},
        "min_tokens",
        "takes 0 alone; deployment=vllm takes it",
    ),
    "chat completion with tools": ({"model": "a", "messages": [USER], "tools": [{}]}, "tools[0]", '"name"'),
    "chat completion in JSON": (
        {"model": "a", "messages": [USER], "response_format": {"type": "json_object"}},
        "response_format",
        "deployment=vllm takes it",
    ),
    "chat completion of our own": (
        {"model": "a", "messages": [USER], "max_new_tokens": 5},
        "max_new_tokens",
        "did you mean max_tokens?",
    ),
    "chat completion with an image": (
        {"model": "a", "messages": [USER | {"content": [{"type": "image_url"}]}]},
        "messages[0].content",
        "send text",
    ),
    "chat completion's length": (
        {"model": "a", "messages": [USER], "max_tokens": 0},
        "max_tokens",
        "whole number from 1",
    ),
    "chat completion's options": (
        {"model": "a", "messages": [USER], "stream_options": {"x": 1}},
        "stream_options",
        "include_usage",
    ),
    "stop empty text": ({"prompt": "a", "stop": [""]}, "stop", "list of at most 8"),
}


@pytest.mark.parametrize(("body", "field", "says"), BAD.values(), ids=BAD)
def test_bad_request_is_refused_with_field_and_cure(body, field: str, says: str):
    with pytest.raises(Refused) as refused:
        parse_request(body if isinstance(body, str | bytes) else json.dumps(body), RULES)
    assert (refused.value.field, refused.value.status) == (field, 400)
    assert says in refused.value.message
    assert len(refused.value.message) < 300
    json.dumps(refused.value.message, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "raw",
    [gzip.compress(b'{"prompt": "a"}'), zlib.compress(b'{"prompt": "a"}'), b"{}"],
    ids=["gzip", "deflate", "by its header"],  # a gzip's bytes hold the time
)
def test_a_compressed_body_is_called_so(raw: bytes):
    with pytest.raises(Refused, match="compressed") as refused:
        parse_request(raw, RULES, content_encoding="gzip" if raw == b"{}" else "")
    assert refused.value.status == 415


def test_too_many_messages_are_refused_unread():
    with pytest.raises(Refused, match="at most 25 are taken") as refused:
        parse_request(json.dumps({"messages": [USER] * 26}), RULES)
    assert refused.value.code == "context_length_exceeded"


def test_raw_prompt_gets_the_trainings_words():
    request = parse_request('{"prompt": "1足す1は？"}', RULES)
    assert request.messages == [{"role": "system", "content": TRAINED.system}, USER]
    assert (request.reasoning_effort, request.temperature, request.max_new_tokens) == ("high", 0, 512)


def test_messages_are_taken_as_they_are():
    chat = [{"role": "system", "content": "d"}, USER, {"role": "assistant", "content": "2"}, USER]
    assert parse_request(json.dumps({"messages": chat, "seed": None}), RULES).messages == chat


def test_limits_come_from_the_environment_and_a_wrong_one_is_named():
    assert Limits.from_environment({"FTKIT_MAX_NEW_TOKENS": "7"}) == Limits(max_new_tokens=7)
    with pytest.raises(ModelError, match="FTKIT_MAX_INPUT_TOKENS='-1'"):
        Limits.from_environment({"FTKIT_MAX_INPUT_TOKENS": "-1"})


def test_chat_completions_are_taken_with_what_other_clients_send_along():
    history = [
        {"role": "system", "content": [{"type": "text", "text": "s"}], "name": "x"},
        USER,
        {"role": "assistant", "content": "2", "reasoning_content": "1+1", "tool_calls": None, "refusal": None},
        USER,
    ]
    body = {"model": "any", "messages": history, "max_completion_tokens": 9, "stop": "。", "user": "me", "tools": []}
    body |= {"frequency_penalty": 0.0, "logprobs": None, "top_logprobs": 0, "top_k": -1, "tool_choice": "auto"}
    request = parse_request(json.dumps(body | {"metadata": {"a": "b"}, "parallel_tool_calls": False}), RULES)
    assert request.messages == [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "2"}, USER]
    assert (request.model, request.max_new_tokens, request.stop, request.stream) == ("any", 9, ("。",), False)


def taken(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return parse_request(json.dumps({"messages": messages} | more), RULES, openai=True).messages


@pytest.mark.parametrize(
    "answer",
    [
        {"content": ""},
        {"content": None},
        {},
        {"content": "", "reasoning_content": "考", "tool_calls": [], "annotations": [], "refusal": None, "audio": None},
        {"content": None, "thinking": "考", "reasoning_details": [{"text": "a"}], "function_call": None},
        {"content": []},
    ],
)
def test_answers_of_this_server_and_of_others_are_taken_back(answer: dict[str, Any]):
    assert taken(USER, {"role": "assistant"} | answer, USER)[1] == {"role": "assistant", "content": ""}


def test_system_messages_are_joined_wherever_they_stand_and_empty_ones_skipped():
    a, empty, b, c = (
        {"role": role, "content": text}
        for role, text in (("system", "A"), ("system", " "), ("developer", "B"), ("system", "C"))
    )
    assert taken(a, empty, b, USER, c) == [{"role": "system", "content": "A\n\nB\n\nC"}, USER]
    assert taken(empty, USER) == [USER]


def test_results_of_tools_get_the_name_of_the_function_that_was_called():
    functions = {"c1": {"name": "f", "arguments": "{}"}, "c2": {"name": "g", "arguments": '{"x": 1}'}}
    calls = [{"id": id_, "type": "function", "function": function} for id_, function in functions.items()]
    answer = {"role": "assistant", "content": None, "reasoning_content": "考", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": id_, "content": "1"} for id_ in ("c2", "c1")]
    _, asked, second, first = taken(USER, answer, *results)
    assert asked == {"role": "assistant", "content": "", "thinking": "考", "tool_calls": calls}
    assert [(result["name"], result["content"]) for result in (first, second)] == [("f", "1"), ("g", "1")]


def test_where_nothing_is_said_openais_format_samples_as_the_model_and_writes_as_far_as_there_is_room():
    own, theirs = (parse_request(json.dumps({"messages": [USER]}), RULES, openai=openai) for openai in (False, True))
    assert (own.temperature, own.top_p, own.max_new_tokens) == (0, 1, 512)
    assert (theirs.temperature, theirs.top_p, theirs.max_new_tokens) == (1.0, 0.9, None)
    assert (
        parse_request(json.dumps({"messages": [USER], "max_tokens": 8192}), RULES, openai=True).max_new_tokens == 1000
    )


@pytest.mark.parametrize("body", [{"messages": [USER]}, {"messages": [USER], "model": None}])
def test_the_path_decides_on_the_format(body: dict[str, Any]):
    assert parse_request(json.dumps(body), RULES, openai=True).openai
    assert parse_request(json.dumps(body), RULES).openai == ("model" in body)


def test_texts_that_only_look_like_special_tokens_are_taken():
    text = "<|im_start|>とは何ですか x <|y|> z"
    assert taken(USER | {"content": text}) == [USER | {"content": text}]


CHAT = [{"role": "user", "content": "12"}]


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"input_data": {"input_string": CHAT, "parameters": {"max_new_tokens": 20}}}, CHAT),
        ({"input_data": {"input_string": ["12"], "parameters": {"max_new_tokens": 20}}}, None),
        ({"input_data": {"columns": ["input_string"], "index": [0], "data": [["12"]]}, "max_new_tokens": 20}, None),
        ({"input_data": ["12"], "parameters": {"max_tokens": 20, "do_sample": False}}, None),
        ({"data": ["12"], "parameters": {"max_new_tokens": 20}}, None),
        ({"data": {"messages": CHAT}, "parameters": {"max_new_tokens": 20}}, CHAT),
        ({"inputs": "12", "parameters": {"max_new_tokens": 20, "return_full_text": False}}, None),
        ({"question": "12", "chat_history": [], "max_new_tokens": 20}, None),
        (
            {
                "question": "12",
                "chat_history": [{"inputs": {"question": "a"}, "outputs": {"answer": "b"}}],
                "max_new_tokens": 20,
            },
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *CHAT],
        ),
    ],
)
def test_azures_own_shapes_are_taken(body: dict[str, Any], messages: list[dict[str, str]] | None):
    request = parse_request(json.dumps(body), RULES)
    asked = messages or [{"role": "system", "content": TRAINED.system}, *CHAT]
    assert parse_request(json.dumps(body), RULES, openai=True).messages == asked
    assert (request.messages, request.max_new_tokens, request.temperature) == (asked, 20, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "x"]), "content": JSON}), max_size=3
)
BODIES = st.dictionaries(st.sampled_from(sorted({*FIELDS, *OPENAI_FIELDS, *OPENAI_HARMLESS, "x"})), JSON, max_size=5)


@settings(deadline=None)
@given(body=JSON | BODIES, chat=st.none() | CHATS)
def test_whatever_is_sent_is_taken_or_refused_as_the_published_document_says(body, chat):
    if isinstance(body, dict) and chat is not None:
        body = body | {"messages": chat}
    schemas = document(LIMITS)["components"]["schemas"]
    try:
        parse_request(json.dumps(body), RULES)
    except Refused as error:
        assert error.status == 400 and error.message
    else:
        given_fields = {name: value for name, value in body.items() if value is not None}
        if "model" not in body:
            jsonschema.validate(given_fields, schemas["Request"])


@settings(deadline=None)
@given(raw=st.binary(max_size=64))
def test_any_bytes_are_taken_or_refused(raw: bytes):
    with pytest.raises(Refused):
        parse_request(raw, RULES)
