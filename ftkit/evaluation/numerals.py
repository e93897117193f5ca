"""Numbers in Japanese text, as exact values.

========================  ==========================================================================================
written                   read as
========================  ==========================================================================================
``１２``, ``1,234``       12, 1234: digits of any width; commas, U+00A0, U+2009, U+202F and LaTeX's ``{,}`` and ``\\,``
                          part groups of three
``.5``, ``18.0``, ``No.5``    1/2, 18, 5
``-5``, ``−5``, ``▲5``    −5, where no digit, letter or bracket stands right before the sign; so does ``マイナス5``
``3万5千``, ``1.5億``     35000, 150000000
``二十五``, ``二〇二六``  25, 2026; ``一緒`` holds no number. Beside digits, kanji count only at the end of a sentence
``3/2``, ``½``, ``1と1/2``, ``三分の一``, ``\\frac{1}{2}``    the fraction: ``3/2`` is not ``1/2``, ``2/4`` is
``10³``, ``2^10``, ``1.5×10^3``, ``2e3``                      1000, 1024, 1500, 2000
``25cm²``, ``25cm^2``, ``25m2``                               25: an exponent of a unit is no number, nor is ``CO₂``
``50%``, ``５割``, ``3割5分``                                 50 percent; compared with a plain number, 50 or 0.5
``3-5個``, ``3〜5``, ``3から5``, ``3:2``, ``2021年8月14日``   one quantity of several numbers, see ``same_quantity``
``⑤``                     5; but in ``18⑤`` it is a mark, and the number is 18
``約``, units             nothing
========================  ==========================================================================================
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

LARGEST_EXPONENT = 400
"""Of a power; beyond it base and exponent are numbers of their own."""

KANJI_DIGITS = {character: value for value, characters in enumerate(
    ("〇零", "一壱", "二弐", "三参", "四", "五伍", "六", "七", "八", "九")) for character in characters}  # fmt: skip
SMALL_UNITS = {"十": 10, "拾": 10, "百": 100, "千": 1000}
LARGE_UNITS = {"万": 10**4, "萬": 10**4, "億": 10**8, "兆": 10**12}

_PLAIN = str.maketrans(
    dict.fromkeys("−‐‑‒–﹣", "-")
    | dict.fromkeys("〜∼〰—―", "~")
    | dict.fromkeys("\u00a0\u2007\u2008\u2009\u205f", "\u202f")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff₀₁₂₃₄₅₆₇₈₉", None)
    | {"⁄": "/", "∕": "/", "﹪": "%", "㌫": "%"}
)
_WRITTEN_OUT = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;! ]"), "\u202f"),
    (re.compile(r"\\%|パーセント"), "%"),
    (re.compile(r"パーミル"), "‰"),
    (re.compile(r"\\(?:times|cdot)"), "×"),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile(r"(\d?)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1 \2/\3"),
    (re.compile(r"(\d?)\s*\{\s*(\d+)\s*\\over\s*(\d+)\s*\}"), r"\1 \2/\3"),
    (re.compile(r"\^\{(-?\d+)\}"), r"^\1"),
    (re.compile(r"(?<=\d)\*\*(?=-?\d)"), "^"),
    (re.compile(r"(?:ゼロ|零)(?=です|でし|だ|であ|とな|にな|[個円人つ。．.!！?？\n）)」』]|$)"), "0"),
    (re.compile(r"※\d+|\[\^\d+\]|(?<=[。．.す])\s?\[\d+\]\s*$"), " "),
    (re.compile(r"マイナス\s*(?=[\d.])|[▲△](?=[\d.])"), "-"),
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_DIGITS = r"(?:\d{1,3}(?:[,\u202f]\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|(?<![\dA-Za-z.])\.\d+)"
_K, _S, _L = ("".join(table) for table in (KANJI_DIGITS, SMALL_UNITS, LARGE_UNITS))
_KANJI = rf"[{_K}{_S}{_L}]+(?:[・点](?=[{_K}])[{_K}]+)?"
_MIXED = rf"{_DECIMAL}(?:[{_S}{_L}]+(?:{_DECIMAL}(?:[{_S}{_L}]+|(?![{_K}])))*)?"
_VULGAR = "".join(chr(i) for i in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F), 0x2189))
_CIRCLED = "".join(chr(i) for i in (*range(0x2460, 0x249C), *range(0x2776, 0x2794), *range(0x3251, 0x3260),
                                    *range(0x3280, 0x328A), *range(0x32B1, 0x32C0), 0x24EA, *range(0x24F5,
                                    0x2500)))  # fmt: skip
_SUP = "[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"

_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z)\]}}%.,])[-+])?(?:"
    rf"(?P<denominator>{_MIXED}|{_KANJI})分の(?P<numerator>{_MIXED}|{_KANJI})"
    rf"|(?<!/)(?P<over>\d+)/(?P<under>\d+)(?![/\d]|\.\d)"
    rf"|(?P<whole>{_DIGITS})?(?P<vulgar>[{_VULGAR}])"
    rf"|(?P<mantissa>{_DECIMAL})(?:[eE](?P<e>[+-]?\d+)(?![\w])|\s*[×x*·]\s*10(?:\^(?P<ten>-?\d+)|(?P<sup_ten>{_SUP})))"
    rf"|(?P<base>{_DECIMAL})(?:\^(?P<power>-?\d+)|(?P<sup>{_SUP}))"
    rf"|(?P<mixed>{_MIXED})"
    rf"|(?P<kanji>{_KANJI})"
    rf"|(?P<circled>[{_CIRCLED}])"
    r")(?P<scale>\s*[%‰]|割(?:(?P<bu>[\d一二三四五六七八九])分)?(?!引|り))?"
)
_IS_ONE = re.compile(r"\s*(?:[-~:]|から|対)\s*")
_BY_UNIT = re.compile(r"(?:/|年|か月|ヶ月|カ月|月|日|時間?|分|キロ|k?[mgL]|メートル|ドル)")
_OF_DATES = {"年", "月", "/"}
_COUNTED = re.compile(
    r"(?:[個人円本枚つ匹台冊歳才年月日時分秒回倍度点杯件階箱袋皿頭羽足通位名組周歩曲束株粒桁番割行]|か所|ヶ所|か月|ヶ月|カ月"
    r"|[㌔㎏㎝㎞㎡㎥]|平方|立方|センチ|ミリ|キロ|メートル|グラム|リットル|ドル|ページ|パーセント|%|[a-zA-Z])"
)
_STATED = re.compile(r"です|でし|だ|であ|とな|にな")
_ENDS = re.compile(r"$|[。．.!！?？\n）)」』]")
_SCALES = {"%": Fraction(1, 100), "‰": Fraction(1, 1000), "割": Fraction(1, 10)}


@dataclass(frozen=True)
class Number:
    """A number as it is written.

    Attributes:
        value: the figure, sign and all: 50 of ``50%``.
        scale: what it is a multiple of: 1/100 of ``50%``; None without such a mark.
    """

    value: Fraction
    scale: Fraction | None = None


@dataclass(frozen=True)
class Quantity:
    """Numbers that belong together.

    Attributes:
        numbers: at least one.
        by_unit: they are joined by units (``2021年8月14日``), not by a mark (``3〜5``, ``3:2``).
        between: what stands behind each but the last.
    """

    numbers: tuple[Number, ...]
    by_unit: bool = False
    between: tuple[str, ...] = ()


def last_quantity(text: str, *, reference: bool = False) -> Quantity | None:
    """The last number of a text with those that belong to it; None where it holds none.

    Args:
        text: any text.
        reference: it is what is expected: a kanji numeral counts only where the text ends with it and its unit.
    """
    plain = _plain(text)
    found = [match for match in _NUMBER.finditer(plain) if not _is_a_mark(match, plain)]
    alone = all(match["kanji"] for match in found)
    found = [m for m in found if not m["kanji"] or _counts(m, plain, no_digits=alone, reference=reference)]
    named = [match for match in found if not _follows_a_letter(match, plain)] or found
    if not named:
        return None
    chain, by_unit, joints = [named[-1]], False, list[str]()
    for earlier, later in pairwise(reversed(named)):
        between = plain[later.end() : earlier.start()]
        unit = _BY_UNIT.fullmatch(between) is not None
        if not (unit or _IS_ONE.fullmatch(between)):
            break
        chain.append(later)
        joints.append(between)
        by_unit = by_unit or unit
    return Quantity(tuple(_number(match) for match in reversed(chain)), by_unit, tuple(reversed(joints)))


def same_quantity(given: Quantity, wanted: Quantity) -> bool:
    """Whether a given quantity is the one that is wanted.

    A single number is held against the last of the given ones: ``3-5個`` is right for 5. Where several are wanted, all
    must be given; years and months before them may be (``2021年3月10日`` for ``3月10日``), hours and the like may not
    (``1時間30分`` for ``30分``).
    """
    numbers, more = given.numbers, len(given.numbers) - len(wanted.numbers)
    if given.by_unit and more > 0 and not {*given.between[:more]} <= _OF_DATES:
        return False
    if len(wanted.numbers) == 1 or wanted.by_unit:
        numbers = numbers[-len(wanted.numbers) :]
    return len(numbers) == len(wanted.numbers) and all(map(_same, numbers, wanted.numbers))


def _same(given: Number, wanted: Number) -> bool:
    if (given.scale is None) is (wanted.scale is None):
        return given.value * (given.scale or 1) == wanted.value * (wanted.scale or 1)
    if given.value == wanted.value:  # its unit is left out, or added
        return True
    scaled, plain = (given, wanted) if given.scale else (wanted, given)
    return plain.value.denominator > 1 and scaled.value * (scaled.scale or 1) == plain.value


def _plain(text: str) -> str:
    """One way of writing for each thing: ASCII digits and marks, ``-`` for minus, ``~`` for ranges."""
    wide = (unicodedata.decomposition(c).startswith("<wide>") for c in text)
    narrowed = (unicodedata.normalize("NFKC", c) if w else c for c, w in zip(text, wide, strict=True))
    digits = (str(unicodedata.digit(c)) if c.isdecimal() else c for c in "".join(narrowed).translate(_PLAIN))
    plain = "".join(digits)
    for pattern, replacement in _WRITTEN_OUT:
        plain = pattern.sub(replacement, plain)
    return plain


def _is_a_mark(match: re.Match[str], text: str) -> bool:
    """An exponent of a unit, or a circled digit that touches a number."""
    before, after = text[: match.start()].rstrip(" ")[-1:], text[match.end() : match.end() + 1]
    if match["circled"]:
        return before.isdecimal() or after.isdecimal()
    return text[match.start() - 1 : match.start()] == "^"


def _follows_a_letter(match: re.Match[str], text: str) -> bool:
    """As in ``m2``, ``CO2`` and ``A4``, but not ``JPY500``."""
    before = text[max(0, match.start() - 4) : match.start()]
    letters = re.search(r"[A-Za-z]+$", before)
    return letters is not None and letters[0] not in ("JPY", "USD", "EUR")


def _counts(match: re.Match[str], text: str, *, no_digits: bool, reference: bool) -> bool:
    """Whether kanji are a number here, and not part of a word as in ``一緒`` and ``もう一度``."""
    rest = text[match.end() :]
    unit, several = _COUNTED.match(rest), len(match["kanji"]) > 1
    rest = rest[unit.end() :] if unit else rest
    if _STATED.match(rest) or (_ENDS.match(rest) and (no_digits or several)):
        return not text[: match.start()].endswith("第")
    return no_digits and not reference and (unit is not None or several)


def _number(match: re.Match[str]) -> Number:
    sign = -1 if match["sign"] == "-" else 1
    mark = (match["scale"] or "").strip()[:1]
    value = _value(match)
    if match["bu"]:
        value += Fraction(_kanji_value(match["bu"]), 10)
    return Number(sign * value, _SCALES.get(mark))


def _value(match: re.Match[str]) -> Fraction:
    part = match.groupdict()
    if part["denominator"]:
        under = _mixed_value(part["denominator"])
        over = _mixed_value(part["numerator"])
        return _preceding_whole(match) + over / under if under else over
    if part["over"]:
        over, under = int_of(part["over"]), int_of(part["under"])
        return Fraction(under) if not under else _preceding_whole(match, over, under) + Fraction(over, under)
    if part["vulgar"]:
        whole = _decimal_value(part["whole"]) if part["whole"] else 0
        return whole + Fraction(unicodedata.numeric(part["vulgar"])).limit_denominator(10)
    if part["mantissa"]:
        exponent = int_of(part["e"] or part["ten"] or part["sup_ten"].translate(_SUPERSCRIPTS))
        mantissa = _decimal_value(part["mantissa"])
        return mantissa * Fraction(10) ** exponent if abs(exponent) <= LARGEST_EXPONENT else Fraction(exponent)
    if part["base"]:
        power, base = int_of(part["power"] or part["sup"].translate(_SUPERSCRIPTS)), _decimal_value(part["base"])
        small = abs(power) <= LARGEST_EXPONENT and abs(base) < 10**LARGEST_EXPONENT and (base or power >= 0)
        return base**power if small else Fraction(power)
    if part["circled"]:
        return Fraction(int(unicodedata.numeric(part["circled"])))
    return _mixed_value(part["mixed"] or part["kanji"])


def _preceding_whole(match: re.Match[str], over: int = 0, under: int = 1) -> Fraction:
    """The whole part of a mixed number: 1 of ``1 1/2``, ``1と1/2`` and ``1と2分の1``."""
    if over >= under:
        return Fraction(0)
    before = re.search(r"(?<![\d.,/])(\d+)(?: |と)$", match.string[max(0, match.start() - 20) : match.start()])
    return Fraction(int_of(before[1])) if before else Fraction(0)


def _mixed_value(text: str) -> Fraction:
    """``3万5千``, ``二十五``, ``二〇二六``, ``三・一四``."""
    if re.fullmatch(_DECIMAL, text):
        return _decimal_value(text)
    whole, _, decimals = text.replace("点", "・").partition("・")
    total = section = Fraction(0)
    pending: Fraction | None = None
    for piece in re.findall(rf"{_DECIMAL}|[{_K}]+|.", whole):
        if piece in SMALL_UNITS:
            section += (1 if pending is None else pending) * SMALL_UNITS[piece]
            pending = None
        elif piece in LARGE_UNITS:
            section += pending or 0
            total += (section or 1) * LARGE_UNITS[piece]
            section, pending = Fraction(0), None
        else:
            pending = Fraction(_kanji_value(piece)) if piece[0] in KANJI_DIGITS else _decimal_value(piece)
    total += section + (pending or 0)
    return total + Fraction(_kanji_value(decimals), 10 ** len(decimals)) if decimals else total


def _kanji_value(digits: str) -> int:
    return int_of("".join(str(KANJI_DIGITS.get(character, character)) for character in digits))


def _decimal_value(text: str) -> Fraction:
    whole, _, decimals = re.sub(r"[,\u202f]", "", text).partition(".")
    return Fraction(int_of(whole + decimals), 10 ** len(decimals))


def int_of(digits: str) -> int:
    """An integer of any length; Python's own ``int`` stops at 4,300 digits."""
    sign, digits = (-1, digits[1:]) if digits[:1] == "-" else (1, digits.lstrip("+"))
    size = 4000
    value = 0
    for start in range(0, len(digits), size):
        piece = digits[start : start + size]
        value = value * 10 ** len(piece) + int(piece or "0")
    return sign * value
