"""Which side of the split each question falls on: by a hash of its text, near duplicates together."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PIECE = 5
"""Characters of the overlapping pieces that two questions are compared by."""
LONGEST = 4_000
"""Characters of a question that are looked at for likeness."""
PERMUTATIONS = 64
FNV_PRIME = np.uint64(0x100000001B3)


@dataclass(frozen=True)
class Keys:
    """What the split needs of some questions.

    Attributes:
        digests: uint64 (questions, 2): of the normalised text: one decides the side, the other who decides in a group.
        signatures: uint8 (questions, 64): low bytes of the MinHash values; of no width when not asked for.
    """

    digests: np.ndarray
    signatures: np.ndarray


@dataclass(frozen=True)
class Sides:
    """Where each question went, and what is alike.

    Attributes:
        heldout: bool (questions,).
        repeated: questions that had occurred before.
        near: other questions that are a near duplicate of one.
    """

    heldout: np.ndarray
    repeated: int
    near: int


def normal(question: str) -> str:
    """A question's text with widths unified and runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", question).split())


def keys(questions: Sequence[str], *, near_duplicates: bool) -> Keys:
    """Digests and, if asked for, MinHash signatures (A. Broder, On the resemblance and containment of documents)."""
    texts = [normal(question) for question in questions]
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    signatures = np.empty((len(texts), PERMUTATIONS if near_duplicates else 0), np.uint8)
    if near_duplicates and texts:
        from datasketch import MinHash

        hashes = MinHash.bulk(_pieces(texts), num_perm=PERMUTATIONS, hashfunc=int)
        signatures = np.stack([h.hashvalues for h in hashes]).astype(np.uint8)  # wraps: the low byte
    return Keys(np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64), signatures)


def sides(found: Sequence[Keys], *, heldout: float, likeness: float) -> Sides:
    """Put each question on a side; equal questions and near duplicates share one.

    A group goes where one of its members would go alone, which a second hash picks: neither the order of the rows nor
    other groups matter.

    Args:
        heldout: share of the groups to hold out.
        likeness: estimated Jaccard index from which two questions are near duplicates; 1 looks at equal ones only.
    """
    digests = np.concatenate([k.digests for k in found])
    unique, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    group = np.arange(len(unique))
    if likeness < 1 and len(unique) > 1:
        signatures = np.concatenate([k.signatures for k in found])[first]
        group = _groups(signatures, likeness)
    by_lot = np.argsort(unique[:, 1])
    decides = np.empty(group.max() + 1, np.int64)
    decides[group[by_lot[::-1]]] = by_lot[::-1]  # the last one written stays: the smallest second digest
    held = unique[decides, 0] / 2.0**64 < heldout
    return Sides(held[group][inverse.reshape(-1)], len(digests) - len(unique), len(unique) - len(decides))


def _pieces(texts: Sequence[str]) -> Iterator[list[int]]:
    """For each text the 32-bit hashes of its overlapping pieces; those at its ends reach beyond them."""
    beyond = "\0" * (PIECE - 1)
    cut = [f"{beyond}{text[:LONGEST].casefold()}{beyond}" for text in texts]
    points = np.frombuffer("".join(cut).encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points) - PIECE + 1, np.uint64)
    for i in range(PIECE):
        hashes = (hashes ^ points[i : i + len(hashes)]) * FNV_PRIME
    hashes = (hashes >> np.uint64(32)).tolist()
    start = 0
    for text in cut:
        yield hashes[start : start + len(text) - PIECE + 1]
        start += len(text)


def _groups(signatures: np.ndarray, likeness: float) -> np.ndarray:
    """int (questions,): numbers of the groups of near duplicates, from 0.

    Candidates agree in one of 16 bands of four values (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4);
    each is held against its neighbour in a bucket and against the first there.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = []
    for band in np.ascontiguousarray(signatures).view(np.uint32).T:
        order = np.argsort(band, kind="stable")
        same = np.concatenate([[False], band[order][1:] == band[order][:-1]])
        opens = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        for earlier in (later - 1, opens[later]):
            left, right = order[later], order[earlier]
            alike = np.mean(signatures[left] == signatures[right], axis=1) >= likeness
            edges.append(np.stack([left[alike], right[alike]]))
    left, right = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(signatures),) * 2)
    return connected_components(graph, directed=False)[1]
