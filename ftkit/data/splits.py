"""Which side of the split each question falls on: by a hash of its text, near duplicates together."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIECE = 5
"""Characters of the overlapping pieces that two questions are compared by."""
LONGEST = 4_000
"""Characters of a question that are looked at for likeness."""
PERMUTATIONS = 64
FNV_PRIME = np.uint64(0x100000001B3)
_WIDE = re.compile("[\u3000\uff01-\uff5e]")
_AFFINE = np.frombuffer(hashlib.shake_128(b"MinHash").digest(8 * PERMUTATIONS), "<u4").reshape(-1, 2) | np.array(
    [1, 0], np.uint32
)
"""uint32 (64, 2): factors, which are odd, and summands of as many permutations of the hashes."""


@dataclass(frozen=True)
class Keys:
    """What the split needs of some questions.

    Attributes:
        digests: uint64 (questions, 2): of the normalised text: one decides the side, the other who decides in a group.
        openings: uint64 (questions,): of the first question with its answer, equal in all stages of a chat that grows.
        signatures: uint8 (questions, 64): as ``_signatures`` has them; of no width when not asked for.
    """

    digests: np.ndarray
    openings: np.ndarray
    signatures: np.ndarray

    def of(self, some: np.ndarray) -> Keys:
        """Those of some of the questions, bool (questions,)."""
        return Keys(self.digests[some], self.openings[some], self.signatures[some])


@dataclass(frozen=True)
class Sides:
    """Where each question went, and what is alike.

    Attributes:
        heldout: bool (questions,).
        repeated: questions that had occurred before.
        near: other questions that are a near duplicate of one.
        largest: rows of the largest group, which shares a side.
        joins: what makes that group: ``near`` duplicates, ``grown`` chats, or questions that are ``equal``.
        moved: the hash left one side without rows, so that a group was put there.
        groups: int (questions,): number of the group that each is in.
    """

    heldout: np.ndarray
    repeated: int
    near: int
    largest: int
    joins: str
    moved: bool
    groups: np.ndarray


def normal(question: str) -> str:
    """A question's text with widths unified and runs of white space as one space."""
    narrow = _WIDE.sub(_narrow, question)  # mostly all that NFKC would change, which takes five times as long
    return " ".join(unicodedata.normalize("NFKC", narrow).split())


def _narrow(wide: re.Match[str]) -> str:
    return " " if wide[0] == "\u3000" else chr(ord(wide[0]) - 0xFEE0)


def keys(questions: Sequence[str], openings: Sequence[str], *, near_duplicates: bool) -> Keys:
    """Digests, and signatures if they are asked for.

    Args:
        questions: all that the user says in each conversation.
        openings: the first thing that the user says in it, with the answer.
    """
    texts = [normal(question) for question in questions]
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    signatures = np.empty((len(texts), PERMUTATIONS if near_duplicates else 0), np.uint8)
    if near_duplicates and texts:
        signatures = _signatures(texts)
    begun = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in openings)
    return Keys(
        np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64), np.frombuffer(begun, np.uint64), signatures
    )


def sides(
    found: Sequence[Keys], *, heldout: float | np.ndarray, likeness: float, validation: np.ndarray | None = None
) -> Sides:
    """Put each question on a side; equal questions, near duplicates and the stages of a chat that grows share one.

    A group goes where one of its members would go alone, which a second hash picks: neither the order of the rows nor
    other groups matter. Where that leaves a side without rows, the group that is nearest to it goes there.

    Args:
        heldout: share of the groups to hold out; float (questions,) where it differs from source to source, and that
            of the deciding member counts.
        likeness: estimated Jaccard index from which two questions are near duplicates; 1 looks at equal ones only.
        validation: bool (questions,): the user's own held-out rows, whose groups are held out as well.
    """
    digests = np.concatenate([k.digests for k in found])
    unique, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    group = np.arange(len(unique))
    if likeness < 1 and len(unique) > 1:
        signatures = np.concatenate([k.signatures for k in found])[first]
        group = _groups(signatures, likeness)
    near = len(unique) - len(np.unique(group))
    alike = group
    group = _with_openings(group, inverse.reshape(-1), np.concatenate([k.openings for k in found]))
    by_lot = np.argsort(unique[:, 1])
    decides = np.empty(group.max() + 1, np.int64)
    decides[group[by_lot[::-1]]] = by_lot[::-1]  # the last one written stays: the smallest second digest
    rows = np.bincount(group[inverse.reshape(-1)])
    shares = np.broadcast_to(heldout, len(digests))[first][decides]
    held, moved = _both_sides(unique[decides, 0] / 2.0**64, shares, rows)
    if validation is not None:
        held[group[inverse.reshape(-1)[validation]]] = True
    largest = int(rows.argmax())
    members = np.flatnonzero(group == largest)
    joins = "equal" if len(members) == 1 else "near" if len(np.unique(alike[members])) < len(members) else "grown"
    groups = group[inverse.reshape(-1)]
    return Sides(held[groups], len(digests) - len(unique), near, int(rows[largest]), joins, moved, groups)


def _both_sides(lots: np.ndarray, shares: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """bool (groups,): which are held out, some of them if any are to be and another group is left to train on.

    Args:
        lots: float (groups,): from 0 to 1; below its share a group is held out.
        shares: float (groups,).
        rows: int (groups,): how many each has.
    """
    held = lots < shares
    if len(lots) == 1 or not shares.any():
        return held & (len(lots) > 1), bool(held.any())
    if held.all():
        held[np.argmax(lots)] = False
        return held, True
    small = (2 * rows <= rows.sum()) & (shares > 0)
    if not held.any() and small.any():
        held[np.flatnonzero(small)[np.argmin(lots[small])]] = True
        return held, True
    return held, False


def _with_openings(group: np.ndarray, inverse: np.ndarray, openings: np.ndarray) -> np.ndarray:
    """int (questions,): the groups, those joined that have conversations with the same opening.

    Args:
        group: int (questions,): number of each question's group, from 0.
        inverse: int (conversations,): index of each one's question.
        openings: uint64 (conversations,).
    """
    opening = np.unique(openings, return_inverse=True)[1].reshape(-1)
    return _components(group[inverse], opening + group.max() + 1)[group]


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """uint8 (texts, 64): low bytes of the MinHash values (A. Broder, On the resemblance and containment of documents).

    All texts at once, as an object for each would take longer than the tokenizer.
    """
    hashes, starts = _pieces(texts)
    values = np.empty((PERMUTATIONS, len(texts)), np.uint8)
    permuted = np.empty_like(hashes)
    for i, (factor, summand) in enumerate(_AFFINE):
        np.multiply(hashes, factor, out=permuted)
        np.add(permuted, summand, out=permuted)
        values[i] = np.minimum.reduceat(permuted, starts)  # wraps: the low byte
    return np.ascontiguousarray(values.T)


def _pieces(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint32 (pieces,) and int64 (texts,): hashes of overlapping pieces, and where each text's begin.

    Pieces at the ends of a text reach beyond them.
    """
    beyond = "\0" * (PIECE - 1)
    cut = [f"{beyond}{text[:LONGEST].casefold()}{beyond}" for text in texts]
    points = np.frombuffer("".join(cut).encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points), np.uint64)
    for i in range(PIECE):
        hashes[: len(points) - i] ^= points[i:]
        hashes *= FNV_PRIME
    lengths = np.array([len(text) for text in cut])
    starts = np.cumsum(lengths) - lengths
    inside = np.ones(len(points), bool)
    for i in range(1, PIECE):
        inside[starts + lengths - i] = False  # begins in one text and ends in the next
    return _mixed(hashes[inside]), starts - (PIECE - 1) * np.arange(len(texts))


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """uint32 of uint64: both halves, each bit of which changes half of the result's (MurmurHash3's last step)."""
    mixed = (hashes ^ (hashes >> np.uint64(32))).astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    return mixed ^ (mixed >> np.uint32(16))


def _groups(signatures: np.ndarray, likeness: float) -> np.ndarray:
    """int (questions,): numbers of the groups of near duplicates, from 0.

    Candidates agree in one of 16 bands of four values (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4);
    each is held against its neighbour in a bucket and against the first there.
    """
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
    return _components(left, right, len(signatures))


def _components(left: np.ndarray, right: np.ndarray, nodes: int = 0) -> np.ndarray:
    """int (nodes,): number of the part of a graph that each node is in, from 0.

    Args:
        left, right: int (edges,): the nodes that each edge joins.
        nodes: how many there are at the least.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = max(nodes, *(int(ends.max(initial=-1)) + 1 for ends in (left, right)))
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1]
