"""What the libraries have to say goes to a file, so that a user reads ftkit's own lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIBRARIES = (
    "transformers", "trl", "peft", "accelerate", "datasets", "torch", "huggingface_hub", "matplotlib", "httpx",
    "py.warnings"
)  # fmt: skip


@contextmanager
def libraries_to(path: Path | None) -> Iterator[None]:
    """Send the libraries' log lines and Python's warnings to a file (nowhere, if None) and hide their progress bars."""
    import datasets.utils.logging as datasets_logging
    from transformers.utils import logging as transformers_logging

    handler = logging.FileHandler(path, encoding="utf-8", delay=True) if path else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled(), datasets_logging.is_progress_bar_enabled()
    logging.captureWarnings(True)
    transformers_logging.disable_progress_bar()
    datasets_logging.disable_progress_bar()
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        logging.captureWarnings(False)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            datasets_logging.enable_progress_bar()
        handler.close()


LOADING = "Loading weights"
"""What transformers heads its bar with that has a step for each tensor of a model."""


@contextmanager
def told_of_weights(more: Callable[[int, int], object]) -> Iterator[None]:
    """Have the tensors counted that transformers loads meanwhile.

    Args:
        more: is called with how many more are loaded, and how many more there are to load.
    """
    from transformers.utils import logging as transformers_logging

    def bar_of(factory: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        bar = factory(*given, **named)
        return _Counted(bar, len(given[0]), more) if named.get("desc") == LOADING else bar

    before = transformers_logging.set_tqdm_hook(bar_of)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


class _Counted:
    """A bar that tells of its steps."""

    def __init__(self, bar: Any, steps: int, more: Callable[[int, int], object]):
        self._bar, self._more = bar, more
        more(0, steps)

    def __iter__(self) -> Iterator[Any]:
        for step in self._bar:
            yield step
            self._more(1, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
