"""Layers that recompute their activations and keep attention's output, the part whose cost grows with the square of a
document's length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from torch import Tensor

Made = tuple[Tensor, ...]
_pass: ContextVar[Callable[[Callable[[], Made]], Made] | None] = ContextVar("pass", default=None)
"""What stands for a computation in the pass through a layer that is under way."""


def kept() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's first pass and of the one that recomputes it: ``context_fn`` of torch's ``checkpoint``."""
    made: deque[Made] = deque()

    def first(compute: Callable[[], Made]) -> Made:
        found = compute()
        made.append(tuple(tensor.detach() for tensor in found))
        return found

    def again(compute: Callable[[], Made]) -> Made:
        return made.popleft()

    return _within(first), _within(again)


def kept_or_made(compute: Callable[[], Made]) -> Made:
    """``compute()``, or within the second of ``kept``'s contexts what it returned within the first."""
    found = _pass.get()
    return compute() if found is None else found(compute)


@contextmanager
def _within(stand_in: Callable[[Callable[[], Made]], Made]) -> Iterator[None]:
    token = _pass.set(stand_in)
    try:
        yield
    finally:
        _pass.reset(token)
