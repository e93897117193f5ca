"""Training and merging. ``train`` and ``merge`` are the ways in; they import torch only when they are called."""

from __future__ import annotations

from ftkit.extras import require

NEEDED = ("torch", "transformers", "accelerate", "peft", "trl", "tensorboard", "matplotlib")


def require_extra() -> None:
    """Raises StageError: a package of the extra ``train`` is missing."""
    require("train", NEEDED, "training")
