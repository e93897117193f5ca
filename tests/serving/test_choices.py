"""Settings of sampling, several answers to one request, and log-probabilities, as OpenAI's format has them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ftkit.serving.endpoint.answers import body, events
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.logprobs import TokenWords
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import parse_request
from ftkit.serving.endpoint.sampling import Chosen, sample
from ftkit.serving.endpoint.service import Served

CHAT = [
    {"role": "system", "content": "reasoning language: Japanese"},
    {"role": "user", "content": "12メートルは何センチメートルですか？"},
]
LOGITS = torch.tensor([[1.0, 4.0, 3.0, 2.0]])


@pytest.fixture(scope="module")
def served(tiny: Path) -> Served:
    return Served(tiny, Limits(concurrent_requests=4), ["tiny"])


def ask(served: Served, **fields: Any) -> ChatCompletion:
    request = parse_request(json.dumps({"messages": CHAT, "temperature": 0} | fields), served.rules, openai=True)
    answerings = served.begin_all(request)
    whole = body(answerings[0].request, [answering.whole() for answering in answerings])
    return ChatCompletion.model_validate(whole)


def stream(served: Served, **fields: Any) -> list[ChatCompletionChunk]:
    asked = {"messages": CHAT, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}} | fields
    sent = events(served.begin_all(parse_request(json.dumps(asked), served.rules, openai=True)), lambda: False)
    *chunks, done = sent
    assert "[DONE]" in done
    return [ChatCompletionChunk.model_validate_json(chunk[6:]) for chunk in chunks]


def drawn(ids: tuple[int, ...] = (), prompt: tuple[int, ...] = (0,), temperature: float = 0.0, **more: Any) -> set[int]:
    """The tokens that come of one row of logits, for many seeds where it is sampled."""
    found = set()
    for seed in range(60 if temperature else 1):
        job = Job(prompt, 100, time.monotonic() + 60, temperature=temperature, seed=seed, more=more)
        job.ids = list(ids)
        found |= set(sample(LOGITS, [job]))
    return found


def test_penalties_and_biases_change_what_is_likeliest():
    assert drawn() == {1}
    assert drawn(logit_bias={"1": -100}) == {2}
    assert drawn(logit_bias={"0": 100, "99999": 5}) == {0}
    assert drawn(ids=(1,), presence_penalty=1.5) == {2}
    assert drawn(ids=(1, 1, 1), frequency_penalty=0.9) == {2}
    assert drawn(ids=(1,), frequency_penalty=0.9) == {1}
    assert drawn(prompt=(1,), repetition_penalty=1.5) == {2}
    assert drawn(prompt=(1,), presence_penalty=2, frequency_penalty=2) == {1}  # of what was generated alone


def test_top_k_and_min_p_leave_out_the_unlikely():
    assert drawn(temperature=2.0) == {0, 1, 2, 3}
    assert drawn(temperature=2.0, top_k=2) == {1, 2}
    assert drawn(temperature=2.0, top_k=99) == {0, 1, 2, 3}
    assert drawn(temperature=1.0, min_p=0.3) == {1, 2}  # e^-1 is more, e^-2 is less
    assert drawn(temperature=2.0, min_p=0.3) == {1, 2, 3}
    assert drawn(temperature=2.0, min_p=1) == {1}


def test_settings_of_one_request_leave_those_beside_it_alone():
    jobs = [Job([0], 9, time.monotonic() + 60, more=more) for more in ({}, {"logit_bias": {"1": -100}})]
    assert sample(LOGITS.repeat(2, 1), jobs) == [1, 2]


def test_several_answers_are_those_of_the_seeds_that_follow(served: Served):
    hot = {"temperature": 1.5, "max_tokens": 20}
    asked = [ask(served, **hot, seed=seed) for seed in (7, 8, 9)]
    alone = [answer.choices[0].message for answer in asked]
    whole = ask(served, **hot, seed=7, n=3)
    assert [choice.message for choice in whole.choices] == alone
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({message.model_dump_json() for message in alone}) > 1
    tokens = sum(answer.usage.completion_tokens for answer in asked if answer.usage)
    assert whole.usage and whole.usage.completion_tokens == tokens > 40
    assert whole.usage.prompt_tokens == whole.usage.total_tokens - tokens < 300
    *chunks, last = stream(served, **hot, seed=7, n=3)
    for index, message in enumerate(alone):
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in choices) == (message.content or "")
        assert choices[-1].finish_reason == asked[index].choices[0].finish_reason
    assert last.usage == whole.usage
    assert served.engine.in_hand == 0


def test_answers_that_have_no_place_are_refused_together(served: Served):
    served.engine.reserve()
    with pytest.raises(Refused) as refused:
        ask(served, n=4)
    assert (refused.value.status, served.engine.in_hand) == (429, 1)
    served.engine.release()


def test_log_probabilities_are_the_models_own_of_the_outputs_tokens(served: Served):
    request = parse_request(
        json.dumps({"messages": CHAT, "temperature": 0, "logprobs": True, "top_logprobs": 3}), served.rules, openai=True
    )
    (answering,) = served.begin_all(request)
    whole = ChatCompletion.model_validate(body(answering.request, [answering.whole()]))
    (choice,) = whole.choices
    assert choice.logprobs and choice.logprobs.content
    said = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert said.decode() == choice.message.content
    ids = torch.tensor([[*answering.job.prompt, *answering.job.ids]])
    with torch.inference_mode():
        shares = served.model(input_ids=ids).logits[0].float().log_softmax(-1)
    begin = len(answering.job.prompt) + len(answering.job.ids) - 1 - len(choice.logprobs.content)
    for at, entry in enumerate(choice.logprobs.content, begin):
        assert entry.logprob == pytest.approx(float(shares[at - 1].max()), abs=1e-3)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(
            shares[at - 1].topk(3).values.tolist(), abs=1e-3
        )
        assert entry.top_logprobs[0].token == entry.token
    streamed = [
        entry
        for chunk in stream(served, logprobs=True, top_logprobs=3)
        for piece in chunk.choices
        if piece.logprobs
        for entry in piece.logprobs.content or ()
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in choice.logprobs.content]


def test_log_probabilities_end_where_a_stop_text_begins(served: Served):
    output = ask(served).choices[0].message.content or ""
    choice = ask(served, logprobs=True, stop=output[4:6]).choices[0]
    assert choice.message.content == output[:4] and choice.logprobs
    said = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content or ()).decode()
    assert said.startswith(output[:4]) and len(said) < len(output)
    assert ask(served).choices[0].logprobs is None


def test_parts_of_characters_are_given_as_bytes(served: Served):
    words, tokens = TokenWords(served.tokenizer), served.tokenizer("𠮷", add_special_tokens=False)["input_ids"]
    parts = [words.shown(Chosen(token, -1.0, []))["bytes"] for token in tokens]
    assert len(parts) > 1
    assert bytes(byte for part in parts for byte in part) == "𠮷".encode()
