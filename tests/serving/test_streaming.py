"""Answers as server-sent events, and in OpenAI's format by the real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from ftkit.errors import StageError
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving import client

QUESTION = "12メートルは何センチメートルですか？"
CHAT = [{"role": "system", "content": "reasoning language: Japanese"}, {"role": "user", "content": QUESTION}]


def events(endpoint: Endpoint, **payload) -> list[dict]:
    with httpx.stream("POST", endpoint.scoring_uri, json=payload, timeout=60, trust_env=False) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


def test_pieces_make_up_the_whole_answer(endpoint: Endpoint):
    whole = client.score(endpoint.scoring_uri, {"prompt": QUESTION}, timeout_s=60)
    *pieces, last = events(endpoint, prompt=QUESTION, stream=True)
    assert len(pieces) > 10
    assert last == {"usage": whole["usage"], "finish_reason": "stop"}
    kinds = [kind for piece in pieces for kind in piece]
    assert kinds == sorted(kinds, reverse=True)  # the thinking, then the output
    for kind in ("thinking", "output"):
        assert "".join(piece.get(kind, "") for piece in pieces) == whole[kind]


def test_no_part_of_a_stop_text_is_sent(endpoint: Endpoint):
    whole = client.score(endpoint.scoring_uri, {"prompt": QUESTION}, timeout_s=60)
    stop = ["nowhere in it", whole["output"][3:7]]
    *pieces, last = events(endpoint, prompt=QUESTION, stream=True, stop=stop)
    assert "".join(piece.get("output", "") for piece in pieces) == whole["output"][:3]
    assert last["finish_reason"] == "stop"


def test_the_client_gets_pieces_and_the_same_answer(endpoint: Endpoint):
    pieces: list[tuple[str, str]] = []
    whole = client.score(endpoint.scoring_uri, {"prompt": QUESTION}, timeout_s=60)
    streamed = client.score(
        endpoint.scoring_uri, {"prompt": QUESTION}, timeout_s=60, on_piece=lambda *piece: pieces.append(piece)
    )
    assert streamed == whole
    assert "".join(text for kind, text in pieces if kind == "output") == whole["output"]
    with pytest.raises(StageError, match="temperature"):
        client.score(endpoint.scoring_uri, {"prompt": "a", "temperature": 9}, timeout_s=60, on_piece=print)


def to_score(request) -> None:
    request.url = request.url.copy_with(path="/score")


@pytest.fixture(params=["/v1", "/score"])
def openai(endpoint: Endpoint, request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    """By OpenAI's own path, and by the one that a managed endpoint has."""
    uri = endpoint.scoring_uri.replace("/score", request.param)
    hooks = {"request": [to_score]} if request.param == "/score" else {}
    with OpenAI(base_url=uri, api_key="-", http_client=DefaultHttpxClient(event_hooks=hooks, trust_env=False)) as made:
        yield made


def test_openais_asynchronous_client_streams_and_goes_on_with_the_answer_and_tools(endpoint: Endpoint):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

    async def converse() -> tuple[str, str | None]:
        uri = endpoint.scoring_uri.replace("/score", "/v1")
        http_client = DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(base_url=uri, api_key="-", http_client=http_client) as ai:
            options = {"model": "tiny", "temperature": 0, "tools": [tool], "tool_choice": "auto"}
            stream = await ai.chat.completions.create(messages=CHAT, stream=True, **options)
            said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            cut = await ai.chat.completions.create(messages=CHAT, max_tokens=2, **options)
            again = [*CHAT, cut.choices[0].message, CHAT[-1]]
            return said, (await ai.chat.completions.create(messages=again, **options)).choices[0].message.content

    with ThreadPoolExecutor(1) as thread:  # a browser of another test may have left its loop in this one
        said, content = thread.submit(asyncio.run, converse()).result()
    assert said and content


def test_openais_client_is_answered_in_its_format(openai: OpenAI, endpoint: Endpoint):
    own = client.score(endpoint.scoring_uri, {"messages": CHAT}, timeout_s=60)
    whole = openai.chat.completions.create(
        model="tiny", temperature=0, messages=CHAT, max_completion_tokens=500, user="me", n=2, logprobs=True
    )
    choice, second = whole.choices
    assert second.message == choice.message and choice.logprobs and choice.logprobs.content
    assert (choice.message.content, choice.message.reasoning_content) == (own["output"], own["thinking"])
    assert (choice.finish_reason, whole.model, whole.object) == ("stop", "tiny", "chat.completion")
    usage = own["usage"]
    assert whole.usage and whole.usage.total_tokens == usage["prompt_tokens"] + 2 * usage["completion_tokens"]

    parts = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = openai.chat.completions.create(model="tiny", temperature=0, messages=parts, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == own["output"]
    thinking = (getattr(chunk.choices[0].delta, "reasoning_content", "") for chunk in chunks)
    assert "".join(thinking) == own["thinking"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.total_tokens == sum(usage.values())

    again = [*CHAT, choice.message, CHAT[1]]
    assert (
        openai.chat.completions.create(model="tiny", messages=again, max_tokens=3).choices[0].finish_reason == "length"
    )
    for wrong in ({"n": 100}, {"max_tokens": 0}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(BadRequestError) as error:
            openai.chat.completions.create(model="tiny", messages=CHAT, **wrong)
        assert error.value.param == next(iter(wrong))
