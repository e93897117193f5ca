"""OpenAI's Responses API without memory: by the real client, and what it refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, DefaultHttpxClient, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving import client
from ftkit.serving.endpoint.answering import Answering
from ftkit.serving.endpoint.answers import body, events
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request, Rules, parse_request
from ftkit.serving.endpoint.service import Served

QUESTION = "12メートルは何センチメートルですか？"
SYSTEM = "reasoning language: Japanese"
USER = {"role": "user", "content": QUESTION}
ADD = {"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "2"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "足そう"}],
    "encrypted_content": None,
}


@pytest.fixture(scope="module")
def openai(endpoint: Endpoint) -> Iterator[OpenAI]:
    uri = endpoint.scoring_uri.replace("/score", "/v1")
    with OpenAI(base_url=uri, api_key="-", http_client=DefaultHttpxClient(trust_env=False)) as made:
        yield made


@pytest.fixture(scope="module")
def served(tiny: Path) -> Served:
    return Served(tiny, Limits(), ["tiny"])


def test_the_real_client_creates_streams_and_goes_on_with_what_came(openai: OpenAI, endpoint: Endpoint):
    chat = [{"role": "system", "content": SYSTEM}, USER]
    own = client.score(endpoint.scoring_uri, {"messages": chat, "reasoning_effort": "low"}, timeout_s=60)
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "instructions": SYSTEM, "reasoning": {"effort": "low"}}
    whole = openai.responses.create(input=QUESTION, **asked)
    reasoning, message = whole.output
    assert (whole.output_text, whole.status, whole.model) == (own["output"], "completed", "tiny")
    assert (reasoning.type, message.type) == ("reasoning", "message")
    assert reasoning.content and reasoning.content[0].text == own["thinking"]
    assert (whole.instructions, whole.previous_response_id, whole.to_dict()["store"]) == (SYSTEM, None, False)
    usage = whole.usage
    assert usage and (usage.input_tokens, usage.output_tokens) == tuple(own["usage"].values())
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens

    with openai.responses.stream(input=[USER], **asked) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_response()
    assert last.output_text == own["output"] and last.usage == usage
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.done") == 2 and "response.reasoning_text.delta" in kinds

    again = openai.responses.create(
        input=[USER, *whole.output, USER], include=["message.output_text.logprobs"], top_logprobs=1, **asked
    )
    text = again.output[-1].content[0]
    assert "".join(entry.token for entry in text.logprobs) == text.text == again.output_text
    cut = openai.responses.create(input=QUESTION, max_output_tokens=9, **asked)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in cut.output] == ["incomplete"]


def test_the_real_client_is_told_what_is_kept_nowhere(openai: OpenAI):
    with pytest.raises(BadRequestError, match="send the whole chat in input") as refused:
        openai.responses.create(model="tiny", input="a", previous_response_id="resp_1")
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "unsupported_parameter")
    with pytest.raises(NotFoundError, match="keeps no responses"):
        openai.responses.retrieve("resp_1")


def test_at_score_a_body_with_input_and_model_is_one(endpoint: Endpoint):
    asked = {"model": "tiny", "input": QUESTION, "max_output_tokens": 3}
    answer = httpx.post(endpoint.scoring_uri, json=asked, timeout=60, trust_env=False).json()
    assert (answer["object"], answer["usage"]["output_tokens"]) == ("response", 3)


def test_invoke_reads_a_response_whole_and_streamed_and_names_its_question(endpoint: Endpoint):
    own = client.score(endpoint.scoring_uri, {"messages": [USER]}, timeout_s=60)
    asked = {"model": "tiny", "input": QUESTION, "temperature": 0}
    assert client.question_in(asked) == QUESTION
    pieces: list[tuple[str, str]] = []
    whole = client.score(endpoint.scoring_uri, asked, timeout_s=60)
    streamed = client.score(endpoint.scoring_uri, asked, timeout_s=60, on_piece=lambda *piece: pieces.append(piece))
    assert "".join(text for kind, text in pieces if kind == "output") == own["output"]
    expected = client.read_answer(own, "score", "")
    assert [client.read_answer(answer, "score", "") for answer in (whole, streamed)] == [expected, expected]


def parsed(**fields: Any) -> Request:
    return parse_request(json.dumps({"model": "tiny", "input": QUESTION} | fields), Rules(Limits()), responses=True)


def test_items_become_the_chat():
    items = [USER, THOUGHT, CALL, CALL | {"call_id": "c2"}, RESULT, RESULT | {"call_id": "c2"}]
    system, user, called, *results = parsed(input=items, instructions="s", tools=[ADD]).messages
    assert (system, user) == ({"role": "system", "content": "s"}, USER)
    assert (called["thinking"], [call["id"] for call in called["tool_calls"]]) == ("足そう", ["c1", "c2"])
    assert [(result["name"], result["content"]) for result in results] == [("add", "2")] * 2
    parts = [{"type": "output_text", "text": "2", "annotations": [], "logprobs": []}]
    answer = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": parts}
    assert parsed(input=[USER, answer, USER]).messages == [USER, {"role": "assistant", "content": "2"}, USER]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"input": None}, "input", "send text, or a list of items"),
        ({"input": []}, "input", "send text, or a list of items"),
        ({"input": ["a"]}, "input[0]", '"role"'),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", "send one of system"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "takes message, reasoning"),
        ({"instructions": "s", "input": [USER, {"role": "user", "content": 5}]}, "input[1].content", "send text"),
        ({"instructions": 5}, "instructions", "send text"),
        ({"input": [USER, RESULT]}, "input[1].call_id", "of no call"),
        ({"input": [USER, {"role": "assistant", "content": "2"}]}, "input[1].role", "comes from user"),
        ({"input": " "}, "input", "send text"),
        ({"conversation": "conv_1"}, "conversation", "keeps no responses"),
        ({"background": True}, "background", "takes false alone"),
        ({"truncation": "auto"}, "truncation", 'takes "disabled" alone'),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "runs no tools of its own"),
        ({"tools": [ADD | {"parameters": [1]}]}, "tools[0].parameters", "JSON schema"),
        ({"tools": [ADD], "tool_choice": "required"}, "tool_choice", "deployment=vllm takes it"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "deployment=vllm takes it"),
        ({"text": "json"}, "text", "send an object"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "low, medium, high"),
        ({"max_output_tokens": 0}, "max_output_tokens", "whole number from 1"),
        ({"max_tokens": 5}, "max_tokens", "did you mean max_output_tokens?"),
        ({"include": ["file_search_call.results"]}, "include", "this server has"),
        ({"n": 2}, "n", "unknown field"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_request(fields: dict[str, Any], field: str, says: str):
    with pytest.raises(Refused) as refused:
        parsed(**fields)
    assert (refused.value.field, refused.value.status) == (field, 400)
    assert says in refused.value.message


def test_a_schema_goes_to_an_engine_that_takes_it():
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    asked = {"model": "tiny", "input": "a", "text": {"format": form}}
    request = parse_request(json.dumps(asked), Rules(Limits(), passed_on=("response_format",)), responses=True)
    named = {"name": "a", "schema": {"type": "object"}, "strict": True}
    assert request.more == {"response_format": {"type": "json_schema", "json_schema": named}}


def test_calls_are_items_whole_and_streamed(served: Served):
    thought = "<|channel|>analysis<|message|>考える<|end|><|start|>assistant"
    text = thought + ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>'

    def generated(**fields: Any) -> Answering:
        job = Job([0], 100, time.monotonic() + 60)
        job.ids, job.ended = served.tokenizer(text, add_special_tokens=False)["input_ids"], "stop"
        return Answering(parsed(tools=[ADD], **fields), job, served.parser.reader())

    answering = generated()
    whole = Response.model_validate(body(answering.request, [answering.whole()]))
    reasoning, call = whole.output
    assert (reasoning.type, call.type) == ("reasoning", "function_call")
    assert (call.name, call.arguments, call.call_id[:5]) == ("add", '{"a": 1}', "call_")
    assert whole.tools[0].name == "add"

    sent = [event.split("\n") for event in events([generated(stream=True)], lambda: False)]
    read = [TypeAdapter(ResponseStreamEvent).validate_json(data.removeprefix("data: ")) for _, data, *_ in sent]
    assert [name for name, *_ in sent] == [f"event: {event.type}" for event in read]
    assert [event.sequence_number for event in read] == list(range(len(read)))
    (delta,) = (event for event in read if event.type == "response.function_call_arguments.delta")
    assert (delta.delta, delta.output_index) == ('{"a": 1}', 1)
    assert [item.type for item in read[-1].response.output] == ["reasoning", "function_call"]
    assert [item.status for item in read[-1].response.output] == ["completed", "completed"]


def test_a_failure_within_a_stream_is_an_event_of_it(served: Served):
    job = Job([0], 100, time.monotonic() + 60)
    job.ended = "failed"
    *_, last = events([Answering(parsed(stream=True), job, served.parser.reader())], lambda: False)
    name, data, *_ = last.split("\n")
    event = TypeAdapter(ResponseStreamEvent).validate_json(data.removeprefix("data: "))
    assert (name, event.type, event.sequence_number) == ("event: error", "error", 2)
    assert "the model failed" in event.message
