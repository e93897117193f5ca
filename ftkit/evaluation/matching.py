"""When an answer is right: the rules of ``evaluation.match``.

``exact``: the same characters. Full and half width (``Ａ``, ``ｶﾞ``), canonically equivalent spellings and white space
make no difference; everything else does: ``x²`` is not ``x2``, ``①`` is not ``1``, ``㍻`` is not ``平成``.

``contains``: the expected text stands in the output by the same measure, as a whole word or number: ``5`` does not
stand in ``15``, nor ``art`` in ``party``.

``last-number``: the last number of the output is the last of the expected text, as ``ftkit.evaluation.numerals`` reads
them. An expected text without a number is compared by ``exact``.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from ftkit.evaluation.numerals import last_quantity, same_quantity

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
"""Zero-width characters, which count as white space."""


def exact(output: str, expected: str) -> bool:
    """The same text; width and white space make no difference."""
    return normal(output) == normal(expected)


def contains(output: str, expected: str) -> bool:
    """The expected text stands in the output as a whole word or number; width and white space make no difference."""
    wanted = normal(expected)
    if not wanted:
        return False
    before = _no_neighbour(wanted[0], r"(?<!{0})", r"(?<!\d[.,])")
    after = _no_neighbour(wanted[-1], r"(?!{0})", r"(?![.,]\d)")
    pattern = before + r"\s*".join(map(re.escape, wanted)) + after
    return re.search(pattern, _same_widths(output)) is not None


def last_number(output: str, expected: str) -> bool:
    """The last number is the expected text's last; where that has none, the whole text."""
    wanted, given = last_quantity(expected, reference=True), last_quantity(output)
    if exact(output, expected) or wanted is None or given is None:
        return exact(output, expected)
    return same_quantity(given, wanted)


MATCHES = {"exact": exact, "last-number": last_number, "contains": contains}
"""The rules of ``evaluation.match``."""


def normal(text: str) -> str:
    """A text in one width, canonically composed, without white space."""
    return "".join(_same_widths(text).split())


def _same_widths(text: str) -> str:
    visible = "".join(_usual_width(character) for character in text if character not in INVISIBLE)
    return unicodedata.normalize("NFC", visible)


@cache
def _usual_width(character: str) -> str:
    """Half-width kana as usual kana, full-width ASCII as ASCII; NFKC alone would change far more."""
    kind, _, code = unicodedata.decomposition(character).partition(" ")
    return chr(int(code, 16)) if kind in ("<wide>", "<narrow>") else character


def _no_neighbour(edge: str, word: str, number: str) -> str:
    if edge.isdigit() and edge.isascii():
        return word.format(r"\d") + number
    return word.format("[A-Za-z]") if edge.isascii() and edge.isalpha() else ""
