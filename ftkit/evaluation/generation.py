"""Batched generation with a model in this process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Completed:
    """A batch of completions.

    Attributes:
        places: of their prompts.
        ids: generated ids of each, up to and including a stop id.
        seconds: that the batch took.
    """

    places: list[int]
    ids: list[list[int]]
    seconds: float


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    done: Collection[int] = (),
) -> Iterator[Completed]:
    """Completions batch by batch, similar lengths together; each batch is the same whichever were left out.

    Args:
        model: a transformers causal language model.
        prompts: token ids of each prompt.
        max_new_tokens: longest completion.
        batch_size: prompts at a time.
        stop_ids: ids that end a completion.
        pad_id: id that fills up shorter prompts, from the left.
        temperature: of what is drawn; 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        seed: of what is drawn. Draws depend on it, the prompt and ``samples`` alone, not on the batch.
        samples: which answer to its prompt each is, so that several differ; None where each is the first.
        done: places of prompts that need no completion; a batch is left out if all of its prompts are.
    """
    import torch
    from transformers import GenerationConfig

    # What is not said here would be filled in from the checkpoint: published ones draw by default.
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
        do_sample=False,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if all(i in done for i in batch):
            continue
        began = time.perf_counter()
        width = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), width), pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        seeds = [_seed(seed, prompts[i], samples[i] if samples else 0) for i in batch]
        with torch.inference_mode():
            generated = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=[Draw(temperature, seeds, model.device, top_p)] if temperature else None,
            )[:, width:].tolist()
        yield Completed(batch, [_up_to_stop(row, stop_ids) for row in generated], time.perf_counter() - began)


class Draw:
    """A logits processor whose likeliest token is one drawn by the given logits, each row with a seed of its own.

    Gumbel's noise does it: the place of the largest of logits / temperature + noise is distributed as their softmax.

    Args:
        temperature: above 0.
        seeds: of each row.
        device: of the logits.
        top_p: share of the probability that tokens are drawn from.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: Any, top_p: float = 1.0):
        import torch
        from transformers import TopPLogitsWarper

        self._temperature = temperature
        self._warp = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        scores = scores.float() / self._temperature
        if self._warp:
            scores = self._warp(input_ids, scores)
        return scores - noise.clamp_min_(1e-30).log_()


def _seed(seed: int, prompt: Sequence[int], sample: int) -> int:
    digest = hashlib.sha256(repr([seed, list(prompt), sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _up_to_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]
