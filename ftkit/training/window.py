"""Counts and figures of a training on their way to a line of metrics."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

GIB = 2**30


class Moment:
    """A moment in the work of the GPU, which may lie ahead of the host; in that of this process where there is none."""

    def __init__(self) -> None:
        self._host = time.perf_counter()
        self._device: torch.cuda.Event | None = None
        if torch.cuda.is_available():
            self._device = _recorded(enable_timing=True)

    def seconds_since(self, earlier: Moment) -> float:
        """Waits until it has come."""
        if self._device is None or earlier._device is None:
            return self._host - earlier._host
        self._device.synchronize()
        return earlier._device.elapsed_time(self._device) / 1000


class News:
    """Numbers on their way from the device to the host."""

    def __init__(self) -> None:
        self._numbers = torch.zeros(1, dtype=torch.long)
        self._arrived: torch.cuda.Event | None = None

    def send(self, numbers: torch.Tensor) -> None:
        """Send numbers without waiting for the device."""
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = _recorded() if numbers.is_cuda else None

    def read(self) -> list[Any]:
        """What was sent last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


class Window:
    """Counts of tokens and seconds: of the whole run, and since the last line of metrics.

    Args:
        tokens: trained on so far, padding not counted.
        loss_tokens: of them, with loss.
        seconds: so far.
    """

    def __init__(self, tokens: int = 0, loss_tokens: int = 0, seconds: float = 0.0):
        self.tokens, self.loss_tokens, self._seconds = tokens, loss_tokens, seconds
        self._since = Moment()
        self._new_tokens = 0
        self._new_loss_tokens: torch.Tensor | int = 0

    def restart(self) -> None:
        """Begin to measure speed from now: saving is not training."""
        self._pass_to(Moment())

    def add(self, tokens: int, loss_tokens: torch.Tensor | int | None) -> None:
        """Count one optimiser step; ``loss_tokens`` stays on the device, for reading it would make the host wait."""
        self._new_tokens += tokens
        self._new_loss_tokens = self._new_loss_tokens + (0 if loss_tokens is None else loss_tokens)

    def taken(self) -> tuple[int, torch.Tensor | int]:
        """Tokens of this process and loss tokens that were added since the last call."""
        new = self._new_tokens, self._new_loss_tokens
        self._new_tokens, self._new_loss_tokens = 0, 0
        return new

    def close(self, tokens: int, loss_tokens: int, ended: Moment) -> dict[str, float]:
        """Figures for a line of metrics; the next window begins where this one ended.

        Args:
            tokens: of the window, of all processes.
            loss_tokens: likewise.
        """
        elapsed = max(self._pass_to(ended), 1e-9)
        self.tokens, self.loss_tokens = self.tokens + tokens, self.loss_tokens + loss_tokens
        return {
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "tokens_per_s": tokens / elapsed,
            "loss_tokens_per_s": loss_tokens / elapsed,
            "seconds": self._seconds,
        }

    def _pass_to(self, moment: Moment) -> float:
        elapsed = moment.seconds_since(self._since)
        self._seconds, self._since = self._seconds + elapsed, moment
        return elapsed


@dataclass(frozen=True)
class SentLine:
    """A line of metrics on its way to the host.

    Attributes:
        steps: that it is about.
        learning_rate: of the last of them.
        numbers: (processes, 5) float64: the sum of the steps' losses, the norm of the last one's gradient, tokens of
            the process, loss tokens of all, peak of the process's memory in GiB.
        process: whose norm and loss tokens are taken.
        ended: when the last step has ended.
    """

    steps: int
    learning_rate: float
    numbers: News
    process: int
    ended: Moment

    def read(self, window: Window) -> dict[str, float]:
        """The line, once it has arrived; it closes the window."""
        of_all = self.numbers.read()
        losses, _, tokens, _, peaks = zip(*of_all, strict=True)
        _, grad_norm, _, loss_tokens, _ = of_all[self.process]
        loss = sum(losses) / len(losses) / self.steps
        figures = {"loss": loss, "grad_norm": grad_norm, "learning_rate": self.learning_rate, "peak_gib": max(peaks)}
        return figures | window.close(int(sum(tokens)), int(loss_tokens), self.ended)


def _recorded(**options: bool) -> torch.cuda.Event:
    """An event that comes when the GPU has done what it has been given so far."""
    event = torch.cuda.Event(**options)
    event.record()
    return event


def peak_gib() -> float:
    """Highest memory so far in GiB: allocated on the GPU, or resident in this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
