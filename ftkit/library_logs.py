"""What the libraries have to say goes to a file, so that a user reads ftkit's own lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
