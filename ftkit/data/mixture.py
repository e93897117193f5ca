"""The sources of ``dataset.mix``: read one after another, taken by weight or count, and accounted for each."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ftkit.config.dataset import Dataset, Rows, Source, key_of_source
from ftkit.data.parts import Part
from ftkit.data.readers import Chunk, read_chunks
from ftkit.data.splits import Sides
from ftkit.errors import StageError

TRAIN, HELD_OUT, SURPLUS = 0, 1, 2
"""Where a conversation goes; surplus is what a weight or a count leaves out."""
OF_SOURCE = re.compile(rf"\bdataset\.(?=(?:path|{'|'.join(Rows.model_fields)})\b)")
"""Begins the keys that a source has for its own."""


@dataclass(frozen=True)
class SourceFigures:
    """What became of the rows of one source.

    Attributes:
        path: where they come from.
        train: conversations to train on.
        heldout: conversations held out.
        surplus: conversations that its weight or count leaves out.
        refused: refused rows by reason.
        training_tokens: of the training split, prompts included.
        shared: conversations whose question is equal to one of another source, or like it.
        asked: rows to take of it, where ``dataset.mix`` gives a count.
        holds_out: a share of them was to be held out.
    """

    path: str
    train: int
    heldout: int
    surplus: int
    refused: Counter[str]
    training_tokens: int
    shared: int
    asked: int | None
    holds_out: bool

    @property
    def rejected(self) -> int:
        return self.refused.total()

    @property
    def rows(self) -> int:
        return self.train + self.heldout + self.surplus + self.rejected

    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{self.rows:,} rows: {self.train:,} to train on, {self.heldout:,} held out, {self.rejected:,} refused, "
            f"{self.surplus:,} left out; {self.training_tokens:,} tokens to train on"
        )

    def figures(self) -> dict[str, int]:
        """For the record."""
        return {
            "rows": self.rows,
            "train": self.train,
            "heldout": self.heldout,
            "rejected": self.rejected,
            "surplus": self.surplus,
            "tokens": self.training_tokens,
        }

    def remarks(self, name: str) -> Iterator[str]:
        """Lines on what may not be as it was meant."""
        if self.asked is not None and self.asked > self.train + self.heldout:
            yield f"{name} has {self.train + self.heldout:,} rows, fewer than {key_of_source(name)}.rows={self.asked}"
        if self.shared:
            one = self.shared == 1
            what = "question is asked in another source too, or one like it; both" if one else (
                "questions are asked in other sources too, or ones like them; they"
            )  # fmt: skip
            yield f"{self.shared:,} of {name}'s {what} are on one side of the split"
        if self.holds_out and not self.heldout:
            yield f"no row of {name} is held out, so it has no held-out loss; {key_of_source(name)}.heldout=0.2"
        if not self.train:
            yield f"no row of {name} is left to train on"


def read_sources(dataset: Dataset, left_out: Callable[[str], None]) -> Iterator[Chunk]:
    """Read the rows of each source, one after another; their numbers go on where the last one's end.

    Args:
        left_out: takes, a line at a time, what lies in a source and is not read.

    Raises:
        StageError: a source cannot be read; the cure names its keys.
    """
    before = 0
    for name, source in dataset.sources.items():
        of = f"{name}: " if name else ""
        end = before
        try:
            for chunk in read_chunks(source, left_out=lambda line, of=of: left_out(of + line)):
                moved = replace(chunk, before=before + chunk.before, source=name)
                end = moved.before + moved.lines[-1]
                yield moved
        except StageError as error:
            raise StageError(
                error.what, where=of + error.where if error.where else name, cure=of_source(error.cure, name)
            ) from error
        before = end


def of_source(text: str, name: str) -> str:
    """A text for the user, ``dataset.encoding=cp932`` for instance, with the keys of one of several sources."""
    if not name:
        return text
    key = key_of_source(name)
    return OF_SOURCE.sub(f"{key}.", text).replace("dataset=", f"{key}.option=")


def taken(parts: Sequence[Part], dataset: Dataset) -> np.ndarray:
    """bool (conversations,): which the weights and counts of the sources take; rows of one's own validation always.

    Of each source the same rows are taken, whatever their order; equal questions stay together.
    """
    takes = np.ones(sum(len(part.rows) for part in parts), bool)
    if dataset.mix is None:
        return takes
    names, own = of_conversations(parts)
    digests = np.concatenate([part.keys.digests for part in parts])[:, 1]
    there = {name: np.flatnonzero((names == name) & ~own) for name in dataset.mix}
    for name, count in _counts(dataset.mix, {name: len(found) for name, found in there.items()}).items():
        by_lot = np.argsort(_lots(digests[there[name]], dataset.mix_seed, name), kind="stable")
        takes[there[name][by_lot[count:]]] = False
    return takes


def of_conversations(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Text (conversations,): the source of each; bool (conversations,): whether it is of the user's held-out rows."""
    sizes = [len(part.rows) for part in parts]
    names = np.repeat(np.array([part.source for part in parts], object), sizes)
    return names, np.repeat([part.validation for part in parts], sizes)


def heldout_shares(parts: Sequence[Part], dataset: Dataset) -> np.ndarray:
    """float (conversations,): the share that its source holds out; 0 where that has held-out rows of its own."""
    own = {part.source for part in parts if part.validation and len(part.rows)}
    shares = {name: 0.0 if name in own else source.heldout for name, source in dataset.sources.items()}
    return np.repeat([shares[part.source] for part in parts], [len(part.rows) for part in parts])


def figures_of(
    parts: Sequence[Part], dataset: Dataset, places: np.ndarray, split: Sides, tokens: np.ndarray
) -> dict[str, SourceFigures]:
    """Figures of each source by its name; none of a single one.

    Args:
        places: int8 (conversations,): where each went.
        split: of those that are not surplus.
        tokens: int64 (conversations,): of the rows that each one makes.
    """
    if dataset.mix is None:
        return {}
    names, _ = of_conversations(parts)
    kept = names[places != SURPLUS]
    pairs = np.unique(np.stack([split.groups, np.unique(kept.astype(str), return_inverse=True)[1]], axis=1), axis=0)
    mixed = np.isin(split.groups, np.flatnonzero(np.bincount(pairs[:, 0]) > 1))
    found = {}
    for name, source in dataset.sources.items():
        own = places[names == name]
        found[name] = SourceFigures(
            path=source.place,
            train=int((own == TRAIN).sum()),
            heldout=int((own == HELD_OUT).sum()),
            surplus=int((own == SURPLUS).sum()),
            refused=sum((part.refused for part in parts if part.source == name), Counter()),
            training_tokens=int(tokens[(names == name) & (places == TRAIN)].sum()),
            shared=int(mixed[kept == name].sum()),
            asked=dataset.mix[name].rows,
            holds_out=source.heldout > 0,
        )
    return found


def _counts(mix: Mapping[str, Source], there: Mapping[str, int]) -> dict[str, int]:
    """How many rows to take of each source; those with a weight as many as the shares allow, none twice."""
    weights = {name: source.weight for name, source in mix.items() if source.weight is not None}
    total = min((there[name] / weight for name, weight in weights.items() if there[name]), default=0.0)
    counts = {name: min(there[name], source.rows or there[name]) for name, source in mix.items()}
    shares = {name: max(1, round(total * weight)) for name, weight in weights.items()}
    return counts | {name: min(share, there[name]) for name, share in shares.items()}


def _lots(digests: np.ndarray, seed: int, name: str) -> np.ndarray:
    """uint64 (conversations,): by which the rows of a source are drawn, the smallest first."""
    salt = np.frombuffer(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), np.uint64)
    mixed = digests ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's last step
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
