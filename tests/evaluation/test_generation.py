"""Drawn answers: by their seed, their question and which answer it is, whatever shares their batch."""

from __future__ import annotations

import numpy as np
import torch
from transformers import GptOssForCausalLM

from ftkit.evaluation.generation import Draw, complete

PROMPTS = [list(range(20 + n, 25 + 3 * n)) for n in range(9)]


def drawn(model: GptOssForCausalLM, prompts: list[list[int]], batch_size: int, **changes) -> dict[tuple, list[int]]:
    """Answers by prompt and sample."""
    settings = {"max_new_tokens": 8, "stop_ids": [1], "pad_id": 0, "temperature": 1.5, "seed": 3} | changes
    samples = settings.get("samples") or [0] * len(prompts)
    batches = list(complete(model, prompts, batch_size=batch_size, **settings))
    places = [place for batch in batches for place in batch.places]
    answers = [ids for batch in batches for ids in batch.ids]
    return {(*prompts[place], samples[place]): ids for place, ids in zip(places, answers, strict=True)}


def test_draws_do_not_depend_on_the_batch_nor_on_other_questions(model: GptOssForCausalLM) -> None:
    one_by_one = drawn(model, PROMPTS, 1)
    assert drawn(model, PROMPTS, 4) == drawn(model, PROMPTS, 9) == one_by_one
    assert drawn(model, PROMPTS[::-2], 4).items() <= one_by_one.items()
    several = drawn(model, [prompt for prompt in PROMPTS for _ in range(3)], 5, samples=[0, 1, 2] * len(PROMPTS))
    assert one_by_one.items() <= several.items(), "the first of three is the one alone"
    assert len({tuple(ids) for ids in several.values()}) > len(PROMPTS), "the others differ"
    assert drawn(model, PROMPTS, 4, seed=4) != one_by_one


def test_tokens_are_drawn_by_the_softmax_of_their_logits() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    rows = 20_000
    draw = Draw(0.7, list(range(rows)), "cpu")
    counts = np.bincount(draw(None, logits.expand(rows, -1)).argmax(-1).numpy(), minlength=12)
    expected = (logits / 0.7).softmax(-1).numpy() * rows
    assert ((counts - expected) ** 2 / expected).sum() < 31.3, "chi-squared of 11 degrees of freedom, p = 0.001"
