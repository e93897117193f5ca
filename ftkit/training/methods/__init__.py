"""One module a method, each with ``arguments`` for TRL, ``rows`` of ``prepare``'s files and a ``trainer`` on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ftkit.config.schema import Config

Say = Callable[[str], None]


def method_of(config: Config) -> Any:
    """The module of ``config.method``."""
    with _unseen("wandb"):  # TRL imports it where it is installed, for seconds; what ftkit logs there, it logs itself
        return import_module(f"ftkit.training.methods.{config.method.name}")


@contextmanager
def _unseen(package: str) -> Iterator[None]:
    """Import as if a package were not installed, unless somebody has imported it."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]  # as the import system has it
    try:
        yield
    finally:
        del sys.modules[package]
