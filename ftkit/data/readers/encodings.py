"""Which encoding a text file is in: UTF-8 and UTF-16 by their form, the Japanese ones by charset-normalizer."""

from __future__ import annotations

import codecs
import re
from io import BufferedReader

from ftkit.data.readers.text import Unreadable, beginning, next_block

BLOCK = 1 << 20
SAMPLE = 1 << 16
"""Bytes of lines that are not UTF-8 which charset-normalizer is shown."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
JAPANESE = ("cp932", "euc_jp")
OTHERS = ("cp1252", "cp1251", "gb18030", "big5", "cp949")
"""Encodings of other languages that the Japanese ones could be taken for."""
KANA = re.compile("[ぁ-ゖァ-ヺー]")
SOME_KANA, MANY_KANA = 0.1, 0.3
"""Shares from which a text is Japanese: where charset-normalizer thinks so too, and where damage keeps it from that."""
ISO_2022_JP = re.compile(rb"\x1b(\$[@B]|\([JI]|\$\(D)")
NULS, NULS_IN_UTF8 = 0.005, 0.05
"""Share of NUL bytes from which a text may be UTF-16 without a byte order mark: of one that is not UTF-8, and of one
that is (hiragana and ASCII alone)."""


def encoding_of(stream: BufferedReader, given: str | None = None) -> str:
    """Read the whole stream and name its encoding; some lines that are damaged do not make a UTF-8 text another one.

    Args:
        stream: the file's bytes, unpacked.
        given: what the user says; it holds but for a text that begins with a byte order mark.

    Raises:
        Unreadable: it is not UTF-8, and which other encoding it is in cannot be told for sure; names the likeliest.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    ascii_only, before = True, b""
    first = block = beginning(stream, BLOCK)
    if marked := next((name for mark, name in MARKS if first.startswith(mark)), None):
        return marked
    if given is not None:
        return "utf-8" if codecs.lookup(given).name == "utf-8" else given
    if utf16 := _utf16_without_mark(first):
        return utf16
    while block:
        if b"\x1b$" in block and ascii_only and block.isascii() and ISO_2022_JP.search(block):
            return "iso2022_jp_ext"
        try:
            ascii_only = decoder.decode(block).isascii() and ascii_only
        except UnicodeDecodeError:
            return _other_than_utf8(before[-SAMPLE:] + block + beginning(stream, BLOCK), ascii_only)
        before, block = block, next_block(stream, BLOCK)
    return "utf-8"


def _utf16_without_mark(start: bytes) -> str | None:
    """UTF-16 by its NUL bytes, which all stand in the same place of two, and its line ends."""
    nuls = start.count(0)
    if (
        nuls < 2
        or 0 not in start.partition(b"\n")[0]
        or nuls < (NULS_IN_UTF8 if _is_utf8(start) else NULS) * len(start)
    ):
        return None
    even, odd = start[::2].count(0), start[1::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    text = start[: len(start) // 2 * 2].decode(name, errors="replace")
    plausible = text.count("\ufffd") * 100 < len(text) and text.count("\n") * 2 >= start.count(b"\n")
    return name if min(even, odd) * 20 < max(even, odd) and plausible else None


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def _other_than_utf8(sample: bytes, ascii_before: bool) -> str:
    """Judge by the lines around the first bytes that are not UTF-8.

    Args:
        sample: some lines; the first and the last may be cut.
        ascii_before: whether nothing but ASCII stood before them.
    """
    import charset_normalizer

    text = sample.decode("utf-8", errors="replace")
    wrong = text.count("\ufffd")
    if not ascii_before or sum(not character.isascii() for character in text) > 2 * wrong:
        return "utf-8"
    pieces = re.split(rb"(?<=[\r\n])", sample)
    whole = pieces[:-1] if len(sample) >= BLOCK and len(pieces) > 1 else pieces
    lines = [line for line in whole if not line.isascii()] or [sample]
    shown = b"".join(lines)[:SAMPLE] if len(lines[0]) < SAMPLE else lines[0][:SAMPLE]
    guesses = list(charset_normalizer.from_bytes(shown, cp_isolation=[*JAPANESE, *OTHERS]))
    likely = guesses[0].encoding if guesses else "cp932"
    for name, kana in ((likely, SOME_KANA), (_despite_damage(shown), MANY_KANA)):
        if name in JAPANESE and _share_of_kana(shown, name) >= kana:
            return name
    raise Unreadable(
        f"the file is not UTF-8, and its encoding cannot be told for sure; it may be {likely}",
        f"dataset.encoding={likely}, or the encoding that it was saved in",
    )


def _despite_damage(shown: bytes) -> str | None:
    """The Japanese encoding with the most kana, of those that fit but for some bytes."""
    fit = [name for name in JAPANESE if shown.decode(name, errors="replace").count("\ufffd") * 50 < len(shown)]
    return max(fit, key=lambda name: _share_of_kana(shown, name), default=None)


def _share_of_kana(shown: bytes, encoding: str) -> float:
    """Of the characters that are not ASCII. Neither Chinese nor a Western text turns into kana."""
    text = [c for c in shown.decode(encoding, errors="replace") if not c.isascii()]
    return len(KANA.findall("".join(text))) / max(1, len(text))
