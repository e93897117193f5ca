"""Continuous batching: requests join and leave the batch between two steps of the model, each with its own sampling.

transformers' own continuous batching has one seed and one choice of greedy or sampled for all requests, and where no
flash attention is installed every request attends to the keys of all others, masked.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ftkit.serving.endpoint.engine import Busy
from ftkit.serving.endpoint.sampling import Chosen, sample, weighed

CHUNK_TOKENS = 1024
"""Prompt tokens, padding included, between two steps of those that are being answered."""
LOOK_S = 0.5
"""How often a waiting request looks whether its client is still there."""

log = logging.getLogger("azmlinfsrv.print")


class Job:
    """One request on its way through the model.

    Args:
        prompt: token ids, at least one.
        max_new_tokens: after which it ends.
        deadline: on ``time.monotonic``'s clock, after which it ends.
        temperature, top_p: of sampling; greedy below ``sampling.COLDEST``.
        seed: makes the sample repeatable, whatever is answered beside it.
        stepwise: ``tokens`` gives each as it comes, and not all of them in the end.
        adapter: that answers; empty for the model without one.
        more: further settings of sampling; of transformers' engine those that ``sampling.SETTINGS`` names.
        likeliest: how many of the likeliest tokens to note with each, beside its own log-probability; None notes none.

    Attributes:
        ids: generated token ids so far, the stop token included.
        chosen: how likely they were, if that is noted.
        ended: "" while it goes on, then "stop", "length", "time", "never begun", "cancelled" or "failed".
        refusal: of the engine, if it did not take the request.
        released: is called when it ends, before anybody can see that.
        on_cancel: is called when it is cancelled.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        deadline: float,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stepwise: bool = False,
        adapter: str = "",
        more: Mapping[str, Any] | None = None,
        likeliest: int | None = None,
    ):
        self.prompt, self.max_new_tokens, self.deadline = prompt, max_new_tokens, deadline
        self.temperature, self.top_p, self.random = temperature, top_p, random.Random(seed)
        self.seed, self.stepwise, self.adapter, self.more = seed, stepwise, adapter, more or {}
        self.likeliest = likeliest
        self.ids: list[int] = []
        self.chosen: list[Chosen] = []
        self.ended = ""
        self.refusal: Exception | None = None
        self.released: Callable[[], None] = lambda: None
        self.on_cancel: Callable[[], None] = lambda: None
        self._cancelled = ""
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def cancel(self, why: str = "cancelled") -> None:
        """Have it leave the batch before the next step."""
        self._cancelled = self._cancelled or why
        self.on_cancel()

    def tokens(self, gone: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Generated token ids until it has ended.

        Args:
            gone: says whether nobody waits for the answer any more; that cancels it.
        """
        given, look = 0, time.monotonic() + LOOK_S
        while True:
            ended = self.ended
            yield from self.ids[given : (known := len(self.ids))]
            given = known
            if ended:
                return
            with suppress(queue.Empty):
                self._news.get(timeout=LOOK_S)
            if time.monotonic() > look:
                look = time.monotonic() + LOOK_S
                if gone():
                    self.cancel()

    def add(self, token: int, stop_ids: Collection[int], chosen: Chosen | None = None) -> None:
        if chosen:
            self.chosen.append(chosen)
        self.ids.append(token)
        if token in stop_ids:
            self.end("stop")
        elif len(self.ids) >= self.max_new_tokens:
            self.end("length")
        elif self.stepwise:
            self._news.put(None)

    def end(self, why: str) -> None:
        if not self.ended:
            self.released()
            self.ended = why
            self._news.put(None)

    def still_running(self) -> bool:
        """Whether it goes on; ends it if it was cancelled or its time is up."""
        if self._cancelled and not self.ended:
            self.end(self._cancelled)
            if self.ended == "cancelled":
                log.info("a request was given up after %d tokens: nobody waits for it", len(self.ids))
        elif not self.ended and time.monotonic() > self.deadline:
            self.end("time" if self.ids else "never begun")
        return not self.ended


class Scheduler:
    """Answers jobs with one model, in one thread of its own.

    Args:
        model: of transformers, with eager attention.
        stop_ids: token ids that end an answer.
        batch_size: jobs that go through the model together.
        capacity: jobs in hand at most, those that wait for a place in the batch included.
        select: puts the adapter of a name, or none for an empty one, to work in the model.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        batch_size: int,
        capacity: int,
        select: Callable[[str], None] = lambda _adapter: None,
    ):
        self._select = select
        self._model, self._stop_ids = model, frozenset(stop_ids)
        self._batch_size, self._capacity = batch_size, capacity
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._arriving: Prefill | None = None
        self._running: dict[str, DecodeBatch] = {}  # by adapter, each with a step of its own
        self._in_hand, self._lock = 0, threading.Lock()
        self._thread: threading.Thread | None = None

    def reserve(self) -> None:
        """Take a place for a job that is about to be submitted, or released.

        Raises:
            Busy: there is none.
        """
        with self._lock:
            if self._in_hand >= self._capacity:
                raise Busy
            self._in_hand += 1

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            self._in_hand -= 1

    def submit(self, job: Job, *, reserved: bool = False) -> None:
        """Take a job, into the place that was reserved for it or another one.

        Raises:
            Busy: there is no room for it.
        """
        if not reserved:
            self.reserve()
        job.released = self.release
        with self._lock:
            if self._thread is None:  # not before: a server may fork after it has loaded the model
                self._thread = threading.Thread(target=self._work, name="model")
                self._thread.start()
        self._inbox.put(job)

    @property
    def in_hand(self) -> int:
        """Jobs that have not ended."""
        return self._in_hand

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while threading.main_thread().is_alive():  # a daemon would be torn out of torch as the process ends
                try:
                    if self._receive():
                        self._turn()
                except Exception:
                    log.exception("the model failed; the requests in its batch get an error")
                    self._fail()

    def _receive(self) -> bool:
        """Take what has been submitted, waiting a moment if there is nothing to do; whether there is now."""
        idle = not (self._waiting or self._arriving or self._running)
        with suppress(queue.Empty):
            while True:
                self._waiting.append(self._inbox.get(block=idle, timeout=LOOK_S))
                idle = False
        return not idle

    def _turn(self) -> None:
        """A step of those that are being answered, one adapter after the other, and a chunk of new prompts."""
        self._waiting = deque(job for job in self._waiting if job.still_running())
        self._running = {adapter: left for adapter, rows in self._running.items() if (left := rows.drop_finished())}
        if not self._arriving:
            self._admit()
        for adapter, rows in self._running.items():
            self._select(adapter)
            rows.step(self._model, self._stop_ids)
        if self._arriving:
            adapter = self._arriving.jobs[0].adapter
            self._select(adapter)
            if arrived := self._arriving.advance(self._model, self._stop_ids):
                running = self._running.get(adapter)
                self._running[adapter] = running.merge(arrived) if running else arrived
                self._arriving = None

    def _admit(self) -> None:
        """Those that wait for the adapter of the one that has waited longest, as far as there is room."""
        room = self._batch_size - sum(len(rows.jobs) for rows in self._running.values())
        same = [job for job in self._waiting if job.adapter == self._waiting[0].adapter][:room]
        for job in same:
            self._waiting.remove(job)
        self._arriving = Prefill(same) if same else None

    def _fail(self) -> None:
        for group in (self._arriving, *self._running.values()):
            for job in group.jobs if group else ():
                job.end("failed")
        self._arriving, self._running = None, {}


class Prefill:
    """Prompts that are read together, chunk by chunk, padded on the left."""

    def __init__(self, jobs: list[Job]):
        self.jobs = jobs
        self._cache: Any = None
        self._read = 0

    def advance(self, model: Any, stop_ids: frozenset[int]) -> DecodeBatch | None:
        """Read the next chunk; once that was the last, the rows with their first token."""
        if self._cache is None:
            self._prepare(model)
        begin, end = self._read, self._read + max(1, CHUNK_TOKENS // len(self.jobs))
        logits = model(
            input_ids=self._ids[:, begin:end],
            position_ids=self._positions[:, begin:end].clamp(min=0),
            attention_mask=self._positions[:, :end] >= 0,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._read = end
        if end < self._ids.shape[1]:
            return None
        rows = DecodeBatch(self.jobs, [len(job.prompt) for job in self.jobs], self._cache)
        rows.append(logits, stop_ids)
        return rows

    def _prepare(self, model: Any) -> None:
        import torch
        from transformers import DynamicCache

        longest = max(len(job.prompt) for job in self.jobs)
        padded = [[0] * (longest - len(job.prompt)) + list(job.prompt) for job in self.jobs]
        self._ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([[len(job.prompt)] for job in self.jobs], device=model.device)
        self._positions = torch.arange(longest, device=model.device) - (longest - lengths)
        self._cache = DynamicCache(config=model.config)


class DecodeBatch:
    """Jobs that are answered together; their keys and values end in the same column.

    Args:
        jobs: one a row.
        lengths: tokens of each that are in the cache.
        cache: of transformers, a layer's keys and values of shape (rows, heads, columns, head size).
    """

    def __init__(self, jobs: list[Job], lengths: list[int], cache: Any):
        self.jobs, self.lengths, self._cache = jobs, lengths, cache

    def append(self, logits: Any, stop_ids: frozenset[int]) -> None:
        """Give each job the token that its logits, a row of (jobs, vocabulary), lead to."""
        tokens = sample(logits, self.jobs)
        for job, token, chosen in zip(self.jobs, tokens, weighed(logits, self.jobs, tokens), strict=True):
            job.add(token, stop_ids, chosen)

    def step(self, model: Any, stop_ids: frozenset[int]) -> None:
        """One more token for each row."""
        import torch

        device, columns = model.device, max(self.lengths) + 1
        positions = torch.tensor(self.lengths, device=device)[:, None]
        hidden = torch.arange(columns, device=device) < columns - 1 - positions
        mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device)
        mask = mask.masked_fill(hidden, torch.finfo(model.dtype).min)[:, None, None]
        logits = model(
            input_ids=torch.tensor([[job.ids[-1]] for job in self.jobs], device=device),
            position_ids=positions,
            attention_mask=_by_layer_type(mask, model.config),
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        self.append(logits, stop_ids)

    def drop_finished(self) -> DecodeBatch | None:
        """Itself without the rows of jobs that have ended, and without columns that no row needs any more."""
        jobs = [job for job in self.jobs if job.still_running()]
        if len(jobs) < len(self.jobs):
            kept = [self.jobs.index(job) for job in jobs]
            self.jobs, self.lengths = jobs, [self.lengths[row] for row in kept]
            for layer in self._cache.layers if jobs else ():
                layer.keys = layer.keys[kept, :, -max(self.lengths) :]
                layer.values = layer.values[kept, :, -max(self.lengths) :]
        return self if jobs else None

    def merge(self, other: DecodeBatch) -> DecodeBatch:
        """These rows and those of ``other``."""
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = _stacked(mine.keys, theirs.keys)
            mine.values = _stacked(mine.values, theirs.values)
        return DecodeBatch(self.jobs + other.jobs, self.lengths + other.lengths, self._cache)


def _by_layer_type(mask: Any, config: Any) -> Any:
    """A mask (rows, 1, 1, columns), of a window where all layers see that alone, or one for each kind of layer."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return mask
    in_window = mask[..., -window:]
    return {"full_attention": mask, "sliding_attention": in_window} if kinds else in_window


def _stacked(first: Any, second: Any) -> Any:
    """Rows under rows, of shape (rows, heads, columns, head size), the shorter ones padded on the left."""
    import torch
    from torch.nn.functional import pad

    columns = max(first.shape[2], second.shape[2])
    return torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in (first, second)])
