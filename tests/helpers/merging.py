"""Merges that are refused and leave nothing."""

from __future__ import annotations

from typing import Any

import pytest

from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.errors import StageError
from ftkit.export.merge import merge

SERVING = ServingDefaults(system="reasoning language: Japanese", current_date="2026-01-01")


def refused(config: Any, said: str, **arguments: Any) -> StageError:
    with pytest.raises(StageError, match=said) as caught:
        merge(config, serving=SERVING, **arguments)
    left = arguments["out"].parent
    assert not arguments["out"].exists() and not [p for p in left.iterdir() if "merged" in p.name]
    return caught.value
