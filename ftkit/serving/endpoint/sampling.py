"""The next token of each request from the model's logits, by the request's own settings, and its log-probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ftkit.serving.endpoint.batching import Job

COLDEST = 1e-3
"""A lower temperature is greedy: dividing by it would overflow."""
SETTINGS = ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
"""Of ``Job.more``, as vLLM defines them."""


class Chosen(NamedTuple):
    """How likely a generated token was.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability, by the model alone: before temperature, penalties and the like.
        likeliest: the likeliest tokens at its place, the first first, each with its own.
    """

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]


def sample(logits: Any, jobs: Sequence[Job]) -> list[int]:
    """The next token of each job.

    Args:
        logits: of shape (jobs, vocabulary).
    """
    import torch

    if any(job.more for job in jobs):
        rows = [_adjusted(row, job) if job.more else row for row, job in zip(logits, jobs, strict=True)]
        logits = torch.stack(rows)
    tokens = logits.argmax(-1)
    if hot := [row for row, job in enumerate(jobs) if job.temperature >= COLDEST]:
        temperature, top_p, drawn = torch.tensor(
            [(jobs[row].temperature, jobs[row].top_p, jobs[row].random.random()) for row in hot], device=logits.device
        ).T[..., None]
        shares, order = (logits[hot].float() / temperature).softmax(-1).sort(descending=True)
        before = shares.cumsum(-1) - shares
        reached = shares.masked_fill((before >= top_p) & (before > 0), 0).cumsum(-1)
        places = (reached < drawn * reached[:, -1:]).sum(-1, keepdim=True)
        tokens[hot] = order.gather(-1, places)[:, 0]
    return tokens.tolist()


def _adjusted(logits: Any, job: Job) -> Any:
    """Logits of shape (vocabulary,) as the job's further settings have them, in vLLM's order.

    What ``min_p`` and ``top_k`` leave out is minus infinity, so that ``top_p`` counts the rest alone.
    """
    import torch

    adjusted, asked, size = logits.float().clone(), job.more, len(logits)
    for token, bias in asked.get("logit_bias", {}).items():
        if int(token) < size:
            adjusted[int(token)] += bias
    if (factor := asked.get("repetition_penalty", 1)) != 1:
        seen = torch.tensor(sorted({*job.prompt, *job.ids}), device=logits.device)
        those = adjusted[seen]
        adjusted[seen] = torch.where(those > 0, those / factor, those * factor)
    if job.ids:
        counts = torch.bincount(torch.tensor(job.ids, device=logits.device), minlength=size)
        adjusted -= asked.get("frequency_penalty", 0) * counts + asked.get("presence_penalty", 0) * (counts > 0)
    if job.temperature >= COLDEST:
        if share := asked.get("min_p", 0):
            least = adjusted.max() + job.temperature * math.log(share)
            adjusted = adjusted.masked_fill(adjusted < least, -math.inf)
        if 0 < (most := asked.get("top_k", 0)) < size:
            adjusted = adjusted.masked_fill(adjusted < adjusted.topk(most).values[-1], -math.inf)
    return adjusted


def weighed(logits: Any, jobs: Sequence[Job], tokens: Sequence[int]) -> list[Chosen | None]:
    """How likely the chosen tokens were, for the jobs that ask for that.

    Args:
        logits: of shape (jobs, vocabulary).
    """
    found: list[Chosen | None] = [None] * len(jobs)
    for row, (job, token) in enumerate(zip(jobs, tokens, strict=True)):
        if job.likeliest is not None:
            shares = logits[row].float().log_softmax(-1)
            best = shares.topk(min(job.likeliest, len(shares)))
            pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found[row] = Chosen(token, float(shares[token]), pairs)
    return found
