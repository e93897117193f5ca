"""The writing system that a text is mostly in, counted over many texts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = ("Japanese", "kanji alone", "Latin letters", "Korean", "other letters", "no letters")
LONGEST = 4_000
"""Characters of a text that are looked at."""
_KANA, _HAN, _LATIN, _HANGUL, _OTHER, _NONE = range(1, 7)


def _classes() -> np.ndarray:
    """uint8: the writing system of each code point that can be a letter."""
    table = np.array([_OTHER if chr(point).isalpha() else _NONE for point in range(0x32000)], np.uint8)
    for script, ranges in (
        (_LATIN, [(0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)]),
        (_KANA, [(0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)]),
        (_HAN, [(0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x31FFF)]),
        (_HANGUL, [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)]),
    ):
        for first, last in ranges:
            part = table[first : last + 1]
            part[part == _OTHER] = script
    return table


_CLASSES = _classes()


def languages(texts: Sequence[str]) -> list[str]:
    """For each text one of ``NAMES``: the writing system of most of its letters.

    Kanji with kana among them are Japanese; kanji alone may be Japanese or Chinese.
    """
    cut = [text[:LONGEST] or " " for text in texts]
    if not cut:
        return []
    points = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _CLASSES[np.minimum(points, len(_CLASSES) - 1)]
    starts = np.concatenate([[0], np.cumsum([len(text) for text in cut])[:-1]])
    kana, han, latin, hangul, other = (np.add.reduceat(classes == c, starts, dtype=np.int64) for c in range(1, _NONE))
    counts = np.stack([kana + han * (kana > 0), han * (kana == 0), latin, hangul, other, np.zeros_like(kana)])
    counts[-1] = counts[:-1].sum(axis=0) == 0
    return [NAMES[i] for i in counts.argmax(axis=0)]
