"""What became of the rows, in figures: for the command line, the record and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftkit.data.packing import pack
from ftkit.data.preparation import Part
from ftkit.data.splits import Sides


@dataclass(frozen=True)
class Statistics:
    """Figures of a prepared data set.

    Attributes:
        kept: conversations.
        heldout: of these, kept out of training.
        refused: refused rows by reason.
        repeated: conversations whose questions had occurred before.
        near: conversations with other questions that are near duplicates of earlier ones.
        neutralised: conversations that hold the text of special tokens.
        languages: token rows by writing system, of their ``thinking`` and of their ``answer``.
        lengths: int32 (token rows of both splits, 3): tokens, those of the prompt, those of the thinking's text.
        trained: bool (token rows,): which are of the training split.
    """

    kept: int
    heldout: int
    refused: Counter[str]
    repeated: int
    near: int
    neutralised: int
    languages: dict[str, Counter[str]]
    lengths: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Part], sides: Sides) -> Statistics:
        """Add up the parts."""
        before = np.cumsum([0, *(len(part.rows) for part in parts)])
        of = np.concatenate([part.of + start for part, start in zip(parts, before, strict=False)])
        return cls(
            kept=len(sides.heldout),
            heldout=int(sides.heldout.sum()),
            refused=sum((part.refused for part in parts), Counter()),
            repeated=sides.repeated,
            near=sides.near,
            neutralised=sum(part.neutralised for part in parts),
            languages={
                kind: sum((part.languages[kind] for part in parts), Counter()) for kind in ("thinking", "answer")
            },
            lengths=np.concatenate([part.lengths for part in parts]),
            trained=~sides.heldout[of],
        )

    @property
    def rejected(self) -> int:
        return sum(self.refused.values())

    @property
    def rows(self) -> int:
        return self.kept + self.rejected

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the training split by what they are; those of the thinking and the answer carry loss."""
        total, prompt, thinking = (int(n) for n in self.lengths[self.trained].sum(axis=0, dtype=np.int64))
        return {"prompt": prompt, "thinking": thinking, "answer": total - prompt - thinking}

    def longer_than(self, max_length: int) -> int:
        """Training rows of more tokens than that."""
        return int((self.lengths[self.trained, 0] > max_length).sum())

    def packing(self, max_length: int) -> tuple[int, float]:
        """Packed rows of ``max_length`` tokens that the training split fills, and how full they are, from 0 to 1."""
        lengths = self.lengths[self.trained, 0]
        lengths = lengths[lengths <= max_length].tolist()
        packed = len(pack(lengths, max_length))
        return packed, sum(lengths) / (packed * max_length) if packed else 0.0

    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{self.rows:,} rows: {self.kept - self.heldout:,} to train on, {self.heldout:,} held out, "
            f"{self.rejected:,} refused; {sum(self.tokens.values()):,} tokens, "
            f"the longest row {self.lengths[:, 0].max():,}"
        )

    def figures(self) -> dict[str, Any]:
        """For the record."""
        tokens = self.tokens
        return {
            "rows": self.rows,
            "train": self.kept - self.heldout,
            "heldout": self.heldout,
            "rejected": self.rejected,
            "training_rows": int(self.trained.sum()),
            "tokens": sum(tokens.values()),
            "loss_tokens": tokens["thinking"] + tokens["answer"],
            "longest": int(self.lengths[:, 0].max()),
        }
