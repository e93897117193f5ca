"""The models that are compared: what each is called, what tells it apart, and its weights while it is asked."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftkit.config.schema import Model


@dataclass(frozen=True)
class Candidate:
    """A model to ask.

    Attributes:
        name: ``base``, ``adapter`` or ``merged``.
        model: how it is loaded.
        digest: tells it apart from other models.
        adapter: folder of an adapter that it answers with, unmerged.
    """

    name: str
    model: Model
    digest: str
    adapter: Path | None = None

    @cached_property
    def loaded(self) -> Any:
        """The model, ready to answer; it is loaded when first asked for, and kept until ``release``."""
        import torch
        from peft import PeftModel

        from ftkit.models.loading import load_base

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded: Any = load_base(self.model, device=device)
        return (PeftModel.from_pretrained(loaded, str(self.adapter)) if self.adapter else loaded).eval()

    @cached_property
    def tokenizer(self) -> Any:
        from ftkit.models.loading import load_tokenizer

        return load_tokenizer(self.model)

    def release(self) -> None:
        """Give its memory back."""
        self.__dict__.pop("loaded", None)
        gc.collect()
