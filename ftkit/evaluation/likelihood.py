"""How likely a model in this process holds given texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple


class Likely(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
        log_likelihood: sum over its tokens, in nats.
        greedy: each of its tokens is the likeliest where it stands.
    """

    log_likelihood: float
    greedy: bool


def log_likelihoods(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad_id: int,
    done: Collection[int] = (),
) -> Iterator[tuple[int, Likely]]:
    """The log-likelihood of each continuation after its prompt, with its place; in the order of falling length.

    Those that differ in their last token alone, as letters of choices do, are read off one pass.

    Args:
        model: a transformers causal language model, or PEFT's around it.
        prompts: token ids before each continuation, at least one.
        continuations: token ids of each.
        batch_size: sequences at a time.
        pad_id: id that fills up shorter sequences, from the right.
        done: places that are left out.
    """
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, (before, wanted) in enumerate(zip(prompts, continuations, strict=True)):
        if place in done:
            continue
        if wanted:
            places[*before, *wanted[:-1]].append(place)
        else:
            yield place, Likely(0.0, True)
    longest_first = sorted(places, key=len, reverse=True)
    for start in range(0, len(longest_first), batch_size):
        sequences = longest_first[start : start + batch_size]
        hidden = _hidden(model, sequences, pad_id)
        for row, sequence in zip(hidden, sequences, strict=True):
            for place in places[sequence]:
                wanted = continuations[place]
                yield place, _likely(model, row[len(sequence) - len(wanted) : len(sequence)], wanted)


def _hidden(model: Any, sequences: Sequence[Sequence[int]], pad_id: int) -> Any:
    """What the last layer leaves, (sequences, longest, width)."""
    import torch

    from ftkit.training.heldout import hidden_states

    ids = torch.full((len(sequences), max(map(len, sequences))), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return hidden_states(model, {"input_ids": ids, "attention_mask": mask})


def _likely(model: Any, hidden: Any, wanted: Sequence[int]) -> Likely:
    """Of the tokens ``wanted``, from the states (len(wanted), width) that they follow from."""
    import torch

    from ftkit.training.heldout import LOGIT_ROWS, project

    total, greedy, targets = 0.0, True, torch.tensor(wanted)
    for rows, ids in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        logits = project(model, rows)
        ids = ids.to(logits.device)
        total += logits.log_softmax(-1).gather(-1, ids[:, None]).double().sum().item()
        greedy = greedy and bool((logits.argmax(-1) == ids).all())
    return Likely(total, greedy)
