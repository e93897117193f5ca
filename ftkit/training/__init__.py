"""Training and merging. ``train`` and ``merge`` are the ways in; they import torch only when they are called."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ftkit.errors import StageError

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

NEEDED = ("torch", "transformers", "accelerate", "peft", "trl", "tensorboard", "matplotlib")


def require_extra() -> None:
    """Check that the packages of the extra ``train`` are installed, without importing them.

    Raises:
        StageError: one is missing; names the command that installs it.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise StageError(
            f"training needs {', '.join(missing)}, which is not installed", cure="pip install 'ftkit[train]'"
        )
