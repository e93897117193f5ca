"""What became of the rows, in figures: for the command line, the record and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftkit.config.dataset import Dataset
from ftkit.data.columns import remark_lines, unused_lines
from ftkit.data.mixture import SURPLUS, TRAIN, SourceFigures, figures_of
from ftkit.data.packing import pack
from ftkit.data.parts import Part
from ftkit.data.refused import Account
from ftkit.data.row_lengths import longest_of
from ftkit.data.splits import Sides

LARGE = 0.5
"""Share of the rows in one group of the split from which it is said."""
WRITTEN_AGAIN = 8
"""How many times the tokens of the chats themselves their rows may have before it is said."""
JOINED = {
    "near": ("their questions are near duplicates", "dataset.near_duplicates=1 joins equal questions only"),
    "grown": ("their chats begin alike", "dataset.heldout=0 trains on all"),
    "equal": ("they ask the same question", "dataset.heldout=0 trains on all"),
}
"""Why the largest group of the split is one, and what to do."""


@dataclass(frozen=True)
class Statistics:
    """Figures of a prepared data set.

    Attributes:
        kept: conversations that are trained on or held out.
        heldout: of these, kept out of training.
        refused: refused rows by reason.
        repeated: conversations whose questions had occurred before.
        near: conversations with other questions that are near duplicates of earlier ones.
        neutralised: conversations that hold the text of special tokens.
        languages: token rows by writing system, of their ``thinking`` and of their ``answer``.
        lengths: int32 (token rows of both splits, 3): tokens, those of the prompt, those of the thinking's text.
        trained: bool (token rows,): which are of the training split.
        worse: int32 (token rows,): of pairs, tokens of the prompt with the worse answer; else empty.
        validation: conversations of the user's own held-out rows; with any, nothing is held out by lot.
        left_out: what lies in the source and was not read, with the reason.
        leaked: held-out token rows that are in training too, token for token.
        longest_chats: tokens of each conversation's longest row, added up.
        split: where the rows went.
        account: what the rows carry beyond what is trained.
        cures: what to do about refused rows, by the reason.
        surplus: conversations that weights and counts of ``dataset.mix`` leave out; the figures of tokens have none.
        sources: figures of each of its sources.
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
    leaked: int
    longest_chats: int
    split: Sides
    account: Account
    cures: dict[str, str]
    worse: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    validation: int = 0
    left_out: Sequence[str] = ()
    surplus: int = 0
    sources: Mapping[str, SourceFigures] = field(default_factory=dict)

    @classmethod
    def of(
        cls, parts: Sequence[Part], sides: Sides, places: np.ndarray, dataset: Dataset, left_out: Sequence[str] = ()
    ) -> Statistics:
        """Add up the parts; ``places`` are int8 (conversations,), where each went."""
        before = np.cumsum([0, *(len(part.rows) for part in parts)])
        of = np.concatenate([part.of + start for part, start in zip(parts, before, strict=False)])
        lengths = np.concatenate([part.lengths for part in parts])
        digests = np.concatenate([part.digests for part in parts])
        worse = np.concatenate([part.worse for part in parts])
        there = places[of] != SURPLUS
        of, lengths, digests, worse = of[there], lengths[there], digests[there], worse[there] if len(worse) else worse
        trained = places[of] == TRAIN
        longest, tokens = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
        np.maximum.at(longest, of, lengths[:, 0])
        np.add.at(tokens, of, lengths[:, 0] + worse if len(worse) else lengths[:, 0])
        account = Account()
        for part in parts:
            account.add(part.account)
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
            lengths=lengths,
            trained=trained,
            leaked=int(np.isin(digests[~trained], digests[trained]).sum()),
            longest_chats=int(longest.sum()),
            split=sides,
            account=account,
            cures={reason: cure for part in parts for reason, cure in part.cures.items()},
            worse=worse,
            validation=sum(len(part.rows) for part in parts if part.validation),
            left_out=left_out,
            surplus=int((places == SURPLUS).sum()),
            sources=figures_of(parts, dataset, places, sides, tokens),
        )

    @property
    def rejected(self) -> int:
        return sum(self.refused.values())

    @property
    def rows(self) -> int:
        return self.kept + self.rejected + self.surplus

    @property
    def like_validation(self) -> int:
        """Rows that are held out because their questions are like some of the user's own held-out rows."""
        return self.heldout - self.validation if self.validation else 0

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the training split by what they are; those of the thinking and the answer carry loss."""
        total, prompt, thinking = (int(n) for n in self.lengths[self.trained].sum(axis=0, dtype=np.int64))
        return {"prompt": prompt, "thinking": thinking, "answer": total - prompt - thinking}

    @property
    def longest(self) -> np.ndarray:
        """int32 (token rows,): tokens of each, of a pair those of its longer answer with the prompt."""
        return np.maximum(self.lengths[:, 0], self.worse) if len(self.worse) else self.lengths[:, 0]

    def longer_than(self, max_length: int) -> int:
        """Training rows of more tokens than that."""
        return int((self.longest[self.trained] > max_length).sum())

    def packing(self, max_length: int) -> tuple[int, float]:
        """Packed rows of ``max_length`` tokens that the training split fills, and how full they are, from 0 to 1."""
        lengths = self.lengths[self.trained, 0]
        lengths = lengths[lengths <= max_length].tolist()
        packed = len(pack(lengths, max_length))
        return packed, sum(lengths) / (packed * max_length) if packed else 0.0

    def remarks(self, dataset: Dataset) -> Iterator[str]:
        """Lines on what is not used, changed or uneven, for the user and the report."""
        yield from unused_lines(self.account, self.rows)
        yield from remark_lines(self.account)
        yield from self._of_split(dataset)
        for name, source in self.sources.items():
            yield from source.remarks(name)
        tokens = int(self.lengths[:, 0].sum(dtype=np.int64))
        if tokens > WRITTEN_AGAIN * self.longest_chats:
            yield (
                f"chats are long: {self.longest_chats:,} tokens become {tokens:,}, for each answer has the turns "
                "before it as its prompt; dataset.loss=last trains what follows the last user message alone"
            )

    def _of_split(self, dataset: Dataset) -> Iterator[str]:
        """What keeps the split from being what was asked for."""
        share = self.split.largest / max(1, self.kept)
        if dataset.holds_out and share > LARGE and self.kept > 1:
            why, cure = JOINED[self.split.joins]
            yield f"{share:.0%} of the rows have to be on the same side of the split: {why}; {cure}"
        asked = "of the sources" if self.sources else f"dataset.heldout={dataset.heldout:g}"
        if self.split.moved and self.heldout:
            yield (
                f"the share {asked} of {self.kept:,} rows would leave a side empty: "
                f"{self.heldout:,} held out, {self.kept - self.heldout:,} to train on"
            )
        elif dataset.holds_out and not self.heldout:
            yield f"no row is held out of {self.kept:,} ({asked})"
        if self.leaked:
            yield f"{self.leaked:,} held-out token rows are in training too, token for token"

    def summary(self) -> str:
        """One line for the user."""
        surplus = f", {self.surplus:,} left out by weight or count" if self.surplus else ""
        counted = f"{self.rows:,} pairs" if len(self.worse) else f"{self.rows:,} rows"
        return (
            f"{counted}: {self.kept - self.heldout:,} to train on, {self.heldout:,} held out, "
            f"{self.rejected:,} refused{surplus}; {self.training_tokens:,} tokens to train on, "
            f"the longest row {self.longest.max():,}"
        )

    @property
    def training_tokens(self) -> int:
        """Tokens of the training split, of pairs those of both answers, each with its prompt."""
        of_pairs = int(self.worse[self.trained].sum(dtype=np.int64)) if len(self.worse) else 0
        return sum(self.tokens.values()) + of_pairs

    def figures(self) -> dict[str, Any]:
        """For the record."""
        tokens = self.tokens
        return {
            "rows": self.rows,
            "train": self.kept - self.heldout,
            "heldout": self.heldout,
            "rejected": self.rejected,
            "training_rows": int(self.trained.sum()),
            "tokens": self.training_tokens,
            "loss_tokens": tokens["thinking"] + tokens["answer"],
            "pairs": bool(len(self.worse)),
            "validation": self.validation,
            "like_validation": self.like_validation,
            "left_out": list(self.left_out),
            "longest": int(self.longest.max()),
            "longest_rows": longest_of(self.longest[self.trained]),
            "equal_across_split": self.leaked,
            "not_used": dict(self.account.unused),
            "not_used_keys": dict(self.account.unused_keys),
            "surplus": self.surplus,
            "sources": {name: source.figures() for name, source in self.sources.items()},
        }
