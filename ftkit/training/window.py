"""Counts and figures of a training on their way to a line of metrics."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

GIB = 2**30


class Window:
    """Counts of tokens and seconds: of the whole run, and since the last line of metrics.

    Args:
        tokens: trained on so far, padding not counted.
        loss_tokens: of them, with loss.
        seconds: so far.
    """

    def __init__(self, tokens: int = 0, loss_tokens: int = 0, seconds: float = 0.0):
        self.tokens, self.loss_tokens = tokens, loss_tokens
        self._began = time.perf_counter() - seconds
        self._new_tokens = 0
        self._new_loss_tokens: torch.Tensor | int = 0
        self.restart()

    def restart(self) -> None:
        """Begin to measure speed from now: saving is not training."""
        self._since = time.perf_counter()

    def add(self, tokens: int, loss_tokens: torch.Tensor | int | None) -> None:
        """Count one optimiser step; ``loss_tokens`` stays on the device, for reading it would make the host wait."""
        self._new_tokens += tokens
        self._new_loss_tokens = self._new_loss_tokens + (0 if loss_tokens is None else loss_tokens)

    def close(self, gathered: Callable[[int], tuple[int, float]]) -> dict[str, float]:
        """Figures for a line of metrics; the next window begins.

        Args:
            gathered: sums tokens over processes, and gives the peak of memory in GiB.
        """
        (tokens, peak), loss_tokens, now = gathered(self._new_tokens), int(self._new_loss_tokens), time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        self.tokens, self.loss_tokens = self.tokens + tokens, self.loss_tokens + loss_tokens
        self._new_tokens, self._new_loss_tokens, self._since = 0, 0, now
        return {
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "tokens_per_s": tokens / elapsed,
            "loss_tokens_per_s": loss_tokens / elapsed,
            "peak_gib": peak,
            "seconds": now - self._began,
        }


class News:
    """Numbers on their way from the device to the host."""

    def __init__(self) -> None:
        self._numbers = torch.zeros(1, dtype=torch.long)
        self._arrived: torch.cuda.Event | None = None

    def send(self, numbers: torch.Tensor) -> None:
        """Send (n,) integers without waiting for the device."""
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = None
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[int]:
        """What was sent last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


def peak_gib() -> float:
    """Highest memory so far in GiB: allocated on the GPU, or resident in this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
