"""What the processes of one training do together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate.utils import gather, gather_object

from ftkit.errors import FtkitError, StageError


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The values (n,) of every process, (processes, n)."""
    together = gather(values)
    assert isinstance(together, torch.Tensor)
    return together.view(-1, len(values))


def in_one(values: Sequence[torch.Tensor | float], device: torch.device) -> torch.Tensor:
    """Single numbers (n,) in float64 on a device, to which those of the host go without waiting for it."""
    numbers = [
        value.detach().to(device, torch.float64).view(())
        if isinstance(value, torch.Tensor)
        else torch.full((), value, device=device, dtype=torch.float64)
        for value in values
    ]
    return torch.stack(numbers)


def together(work: Callable[[], None]) -> None:
    """Do a piece of work on every process; when it fails on one, fail on all, so that none waits for ever.

    Raises:
        StageError: as raised on this process, or else what another process reports.
    """
    error: FtkitError | None = None
    try:
        work()
    except FtkitError as raised:
        error = raised
    failed = [text for text in gather_object([str(error) if error else ""]) if text]
    if error:
        raise error
    if failed:
        raise StageError(f"another process reports: {failed[0]}")
