"""Batched generation with a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: Sequence[int],
    pad_id: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[list[int]]:
    """Greedy completions, in the order of the prompts.

    Args:
        model: a transformers causal language model.
        prompts: token ids of each prompt.
        max_new_tokens: longest completion.
        batch_size: prompts at a time; similar lengths are put together.
        stop_ids: ids that end a completion.
        pad_id: id that fills up shorter prompts, from the left.
        progress: told how many prompts are done.

    Returns:
        Generated ids of each prompt, up to and including a stop id.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), width), pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            generated = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=list(stop_ids),
                pad_token_id=pad_id,
            )[:, width:].tolist()
        for i, row in zip(batch, generated, strict=True):
            completions[i] = _up_to_stop(row, stop_ids)
        progress(min(start + batch_size, len(order)))
    return completions


def _up_to_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]
