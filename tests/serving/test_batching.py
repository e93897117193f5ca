"""Many requests through one model at a time, each answered as if it were alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_families import save_small
from transformers import AutoModelForCausalLM

from ftkit.data import sample
from ftkit.serving.endpoint import batching
from ftkit.serving.endpoint.batching import Busy, Job, Scheduler
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.requests import Request
from ftkit.serving.endpoint.service import Served

LATER = time.monotonic() + 10**6
"""In seconds from the import, which is at the start of a whole run: after any run's end."""


@pytest.fixture(scope="module")
def served(tiny: Path) -> Served:
    return Served(tiny, Limits())


@pytest.fixture(scope="module")
def prompts(served: Served) -> list[list[int]]:
    """Of 70 to 300 tokens, more than the sliding window's 64."""
    questions = [problem.question for problem in sample.problems(10)]
    texts = [question * (1 + 3 * (i % 3)) for i, question in enumerate(questions)]
    return [served.prompt_ids(Request([{"role": "user", "content": text}])) for text in texts]


def answers(served: Served, jobs: list[Job], batch_size: int) -> list[list[int]]:
    return answered(served.model, served.parser.stop_ids, jobs, batch_size)


def answered(model: Any, stop_ids: list[int], jobs: list[Job], batch_size: int) -> list[list[int]]:
    scheduler = Scheduler(model, stop_ids, batch_size, len(jobs))
    for job in jobs:
        scheduler.submit(job)
    return [list(job.tokens()) for job in jobs]


def generated_alone(served: Served, prompt: list[int]) -> list[int]:
    return generated(served.model, served.parser.stop_ids, prompt)


def generated(model: Any, stop_ids: list[int] | None, prompt: list[int]) -> list[int]:
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=60,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=0,
        )
    return whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("batch_size", "chunk_tokens"), [(3, 100), (32, 1024)])
def test_each_answer_is_the_one_that_generate_gives_alone(
    served: Served, prompts, monkeypatch: pytest.MonkeyPatch, batch_size: int, chunk_tokens: int
):
    """With fewer places than requests they join and leave in the midst of others; with small chunks so do prompts."""
    monkeypatch.setattr(batching, "CHUNK_TOKENS", chunk_tokens)
    together = answers(served, [Job(prompt, 60, LATER) for prompt in prompts], batch_size)
    assert together == [generated_alone(served, prompt) for prompt in prompts]


def test_a_window_in_all_layers_is_kept(tmp_path: Path):
    """Mistral's config.json says no more than how wide it is: prompts are shorter and longer than its 8 tokens."""
    model = AutoModelForCausalLM.from_pretrained(save_small("mistral", tmp_path), attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data *= 6  # else one token follows on any other
    prompts = [[5 + (7 * i + n) % 250 for i in range(n)] for n in (3, 8, 40)]
    together = answered(model, [], [Job(prompt, 60, LATER) for prompt in prompts], 2)
    assert together == [generated(model, None, prompt) for prompt in prompts]
    assert all(len(set(answer)) > 10 for answer in together)


def test_a_seed_gives_the_same_sample_beside_others_and_alone(served: Served, prompts):
    seeds = range(7, 11)

    def jobs() -> list[Job]:
        return [Job(prompts[0], 30, LATER, temperature=2.0, top_p=0.99, seed=seed) for seed in seeds]

    alone = [answers(served, [job], 1)[0] for job in jobs()]
    others = [Job(prompt, 20, LATER, temperature=1.0) for prompt in prompts[1:]]
    assert answers(served, [*others, *jobs()], 32)[-len(seeds) :] == alone
    assert len(set(map(tuple, alone))) > 1


def test_top_p_of_nothing_takes_the_likeliest_token(served: Served, prompts):
    cold = answers(served, [Job(prompts[0], 20, LATER, temperature=2.0, top_p=0.0)], 1)
    assert cold == answers(served, [Job(prompts[0], 20, LATER)], 1)


@pytest.fixture
def endless(served: Served) -> Iterator[Scheduler]:
    """No token ends an answer."""
    yield Scheduler(served.model, (), 2, 3)


def test_a_job_leaves_when_it_is_cancelled_or_its_time_is_up_and_others_go_on(endless: Scheduler, prompts):
    cancelled, late, third = (Job(prompt, 10**9, LATER, stepwise=True) for prompt in prompts[:3])
    for job in (cancelled, late, third):
        endless.submit(job)
    with pytest.raises(Busy):
        endless.submit(Job(prompts[0], 1, LATER))
    next(cancelled.tokens()), next(late.tokens())
    assert third.ids == []  # there are two places
    cancelled.cancel()
    list(cancelled.tokens())
    next(third.tokens())
    late.deadline = 0
    list(late.tokens())
    never = Job(prompts[0], 5, 0)
    endless.submit(never)
    assert list(never.tokens()) == []
    assert list(third.tokens(gone=lambda: True)) == third.ids  # its client has gone
    assert [job.ended for job in (cancelled, late, third, never)] == ["cancelled", "time", "cancelled", "never begun"]
    assert endless.in_hand == 0


def test_when_the_model_fails_those_in_its_batch_are_told_and_the_next_is_answered(
    served: Served, prompts, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> list[int]:
        raise RuntimeError("out of memory")

    scheduler = Scheduler(served.model, served.parser.stop_ids, 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(batching, "sample", fail)
        jobs = [Job(prompts[0], 5, LATER), Job(prompts[1], 5, LATER)]
        for job in jobs:
            scheduler.submit(job)
        assert [list(job.tokens()) for job in jobs] == [[], []]
    assert [job.ended for job in jobs] == ["failed", "failed"]
    good = Job(prompts[0], 5, LATER)
    scheduler.submit(good)
    assert list(good.tokens()) == generated_alone(served, prompts[0])[:5]
