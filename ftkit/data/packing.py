"""Packing: whole rows into bins of at most ``max_length`` tokens. A row is never cut and never lost."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Best-fit decreasing: the longest row first, each into the fullest bin that still has room for it.

    O(n log n) in the number of rows; at most 11/9 of the fewest possible bins, plus one
    (D. S. Johnson, Near-optimal bin packing algorithms, 1973). The same lengths always give the same bins.

    Args:
        lengths: tokens of each row, each from 1 to ``max_length``.
        max_length: capacity of a bin in tokens.

    Returns:
        Bins as lists of row indices; every index from 0 to ``len(lengths) - 1`` is in exactly one.

    Raises:
        ValueError: a row is empty or longer than a bin.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for row in order[:1] + order[-1:]:
        if not 0 < lengths[row] <= max_length:
            raise ValueError(f"row {row} has {lengths[row]} tokens; a row has from 1 to {max_length}")
    bins: list[list[int]] = []
    with_room = defaultdict[int, list[int]](list)  # free tokens -> bins that have just as many
    rooms: list[int] = []  # the keys of with_room that are in use, ascending
    for row in order:
        place = bisect_left(rooms, lengths[row])
        if place == len(rooms):
            room, index = max_length, len(bins)
            bins.append([])
        else:
            room = rooms[place]
            index = with_room[room].pop()
            if not with_room[room]:
                del rooms[place]
        bins[index].append(row)
        if left := room - lengths[row]:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(index)
    return bins
