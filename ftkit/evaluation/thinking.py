"""Whether a text is Japanese, and whether it says the same over and over; both look at all of it."""

from __future__ import annotations

import re

import numpy as np

KANA = re.compile("[\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d]")
HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
SENTENCE = re.compile(r"[^。．！？!?\n]+")
KANA_SHARE = 0.1
"""Of the kana and kanji of a Japanese sentence, at least so many are kana; Chinese has none but in quoted words."""
LONGEST_WITHOUT_KANA = 8
"""Kanji of a Japanese note without kana, 合計十三個 for instance."""
CHINESE_ALONE = re.compile("[們這嗎呢吧沒很麼哪您]")
"""Characters of JIS that Chinese is full of and Japanese prose lacks."""

REPEATED = 4
SHORTEST_LOOP = 32
PIECE = 8
"""Characters of the pieces whose recurrence shows how long a repeated unit may be."""


def is_japanese(text: str) -> bool:
    """Whether most letters of a text stand in Japanese sentences.

    A sentence is Japanese when a tenth of its kana and kanji are kana; a few kanji without kana count as well, if they
    are characters that Japanese writes.
    """
    japanese = letters = 0
    for sentence in SENTENCE.findall(text):
        kana, han = len(KANA.findall(sentence)), len(HAN.findall(sentence))
        letters += sum(map(str.isalpha, sentence))
        if kana + han and (kana >= KANA_SHARE * (kana + han) or _is_a_note(sentence, han)):
            japanese += kana + han
    return 2 * japanese > letters


def _is_a_note(sentence: str, han: int) -> bool:
    if han > LONGEST_WITHOUT_KANA or CHINESE_ALONE.search(sentence):
        return False
    try:
        "".join(HAN.findall(sentence)).encode("euc_jp")
    except UnicodeEncodeError:
        return False  # simplified characters
    return True


def repeats_itself(text: str) -> bool:
    """Whether the same words come four times in a row or more, 32 characters at the least.

    Repeated marks without letters, as rules of tables are, and the digits of one number are none.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return any(_repeats_every(period, points, text) for period in _periods(points))


def _periods(points: np.ndarray) -> list[int]:
    """Lengths that a repeated unit may have: the short ones, and distances at which a piece comes again and again."""
    longest = len(points) // REPEATED
    short = list(range(1, min(PIECE, longest + 1)))
    if longest < PIECE:
        return short
    pieces = np.zeros(len(points) - PIECE + 1, np.uint64)
    for place in range(PIECE):
        pieces = pieces * np.uint64(0x100000001B3) + points[place : place + len(pieces)]
    order = np.argsort(pieces, kind="stable")
    gaps = np.diff(order)[pieces[order][1:] == pieces[order][:-1]]
    found, times = np.unique(gaps, return_counts=True)
    return short + found[(times >= REPEATED - 1) & (found >= PIECE) & (found <= longest)].tolist()


def _repeats_every(period: int, points: np.ndarray, text: str) -> bool:
    """Whether a unit of so many characters comes again and again somewhere."""
    same = np.concatenate([[False], points[:-period] == points[period:], [False]])
    starts, ends = np.flatnonzero(same[1:] & ~same[:-1]), np.flatnonzero(same[:-1] & ~same[1:])
    for start, length in zip(starts.tolist(), (ends - starts + period).tolist(), strict=True):
        if length >= max(REPEATED * period, SHORTEST_LOOP) and _says_something(text[start : start + period]):
            return True
    return False


def _says_something(unit: str) -> bool:
    """It holds a letter; or digits and something between them, which no number does."""
    if any(character.isalpha() and character != "ー" for character in unit):
        return True
    return any(map(str.isdigit, unit)) and re.search(r"[^\d.,|\-:\s]", unit) is not None
