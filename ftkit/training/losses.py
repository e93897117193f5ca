"""What the losses of an evaluation are called: those of all held-out rows, and of each source of ``dataset.mix``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PARTS = ("eval_loss", "eval_thinking_loss", "eval_answer_loss")
LOSS = re.compile(r"eval_(\w+_)?loss")
"""``PARTS``, and the same of a source, whose name stands before what is measured."""


def of_source(source: str) -> tuple[str, ...]:
    """What the losses of one source are called, in the order of ``PARTS``."""
    return tuple(name.replace("eval_", f"eval_{source}_") for name in PARTS)


def source_of(name: str) -> str:
    """The source that a loss on all its tokens is of; empty for a part of one, and for ``PARTS``."""
    found = LOSS.fullmatch(name)
    source = (found[1] or "").removesuffix("_") if found else ""
    return "" if source.endswith(("thinking", "answer")) else source


def losses_of(log: Mapping[str, Any]) -> dict[str, float]:
    """The losses among an evaluation's figures, by name."""
    return {name: value for name, value in log.items() if LOSS.fullmatch(name)}
