"""Training and merging; ``train`` and ``merge`` are the ways in, once ``require_extra`` has found what they import."""

from __future__ import annotations

from ftkit.extras import require

NEEDED = ("torch", "transformers", "accelerate", "peft", "trl", "tensorboard", "matplotlib")


def require_extra() -> None:
    """Raises StageError: a package of the extra ``train`` is missing."""
    require("train", NEEDED, "training")
