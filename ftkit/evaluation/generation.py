"""Batched generation with a model in this process."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    seed: int = 0,
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
        seed: of what is drawn.
        done: places of prompts that need no completion; a batch is left out if all of its prompts are.
    """
    import torch
    from transformers import GenerationConfig

    # What is not said here would be filled in from the checkpoint: published ones draw by default.
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
        do_sample=temperature > 0,
        **drawn,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for number, start in enumerate(range(0, len(order), batch_size)):
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
        torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]))
        with torch.inference_mode():
            generated = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )[:, width:].tolist()
        yield Completed(batch, [_up_to_stop(row, stop_ids) for row in generated], time.perf_counter() - began)


def _up_to_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]
