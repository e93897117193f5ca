"""Many clients at a time, as a team would ask: every answer is the one that its question gets alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from ftkit.data import sample
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.loading import find_model
from ftkit.serving.endpoint.requests import parse_request
from ftkit.serving.endpoint.service import Served

CONNECTIONS, REQUESTS = 64, 256


def payloads() -> list[dict[str, Any]]:
    """Different questions, lengths and kinds: greedy, sampled with a seed, streamed."""
    kinds = [{}, {"temperature": 1.2, "seed": 3}, {"stream": True}, {"stop": ["1"]}]
    return [
        {"prompt": problem.question, "max_new_tokens": 6 + i % 9, **kinds[i % 4]}
        for i, problem in enumerate(sample.problems(REQUESTS))
    ]


def read(answer: httpx.Response) -> tuple[str, str]:
    """Thinking and output of an answer, whole or streamed."""
    assert answer.status_code == 200, answer.text
    streamed = answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line] if streamed else [answer.json()]
    assert events[-1]["finish_reason"] in ("stop", "length")
    thinking, output = ("".join(event.get(kind, "") for event in events) for kind in ("thinking", "output"))
    return thinking, output


def test_no_request_is_lost_or_mixed_up_and_health_is_answered(endpoint: Endpoint, model_dir: Path):
    limits = httpx.Limits(max_connections=CONNECTIONS)
    with (
        httpx.Client(timeout=120, trust_env=False, limits=limits) as client,
        ThreadPoolExecutor(CONNECTIONS) as pool,
        httpx.Client(timeout=120, trust_env=False) as probe,
    ):
        asked = [pool.submit(client.post, endpoint.scoring_uri, json=payload) for payload in payloads()]
        while not all(future.done() for future in asked):
            assert probe.get(endpoint.health_uri).text == "Healthy"
    served = Served(find_model(model_dir), Limits(batch_size=1))
    for payload, future in zip(payloads(), asked, strict=True):
        alone = served.begin(parse_request(json.dumps(payload), served.rules)).whole()
        assert read(future.result()) == (alone["thinking"], alone["output"]), payload
