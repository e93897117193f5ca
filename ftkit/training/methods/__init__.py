"""One module a method, each with ``arguments`` for TRL, ``rows`` of ``prepare``'s files and a ``trainer`` on them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ftkit.config.schema import Config

Say = Callable[[str], None]


def method_of(config: Config) -> Any:
    """The module of ``config.method``."""
    return import_module(f"ftkit.training.methods.{config.method.name}")
