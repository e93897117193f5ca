"""The rules of ``evaluation.match``, on the ways in which Japanese answers write numbers and texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.evaluation.matching import MATCHES, contains, exact, last_number, normal

RIGHT = [
    # signs, separators, widths
    ("答えは１８です", "18"), ("1,200円", "1200円"), ("1\u202f234円", "1234"), ("1\u2009234円", "1234"),
    ("1{,}234円", "1234"), ("10,815,197人", "10815197"), ("\u22125", "-5"), ("－５度", "-5"), ("▲5", "-5"),
    ("マイナス5度", "-5"), ("x=-5", "-5"), ("(−5)", "-5"), ("100-50=50", "50"), ("5 - 3 = 2", "2"),
    ("COVID-19", "19"), (".5", "0.5"), ("答えは.5です", "0.5"), ("1.750リットル", "1.75"), ("18.0", "18"),
    ("1,2,3", "3"), ("1、234", "234"), ("𝟏𝟖", "18"), ("**18**", "18"), ("\\boxed{18}", "18"), ("JPY500", "500"),
    # units and their exponents
    ("答えは25cm²です。", "25"), ("25cm^2", "25"), ("25cm2です", "25"), ("25㎠です", "25"), ("18\\text{cm}^2", "18"),
    ("約18個です", "18"), ("CO₂は18gです", "18"),
    # kanji
    ("二十五です", "25"), ("三十八人です。", "38"), ("二〇二六年", "2026"), ("三・一四", "3.14"), ("答えは八個", "8"),
    ("3万5千円", "35000"), ("1.5億", "150000000"), ("2億3000万", "230000000"), ("百二十三", "123"), ("一万", "10000"),
    ("壱万弐千参百", "12300"), ("2つ", "二つ"), ("3×6なので、答えは十八です。", "18"),
    ("答えは18です。一緒に頑張りましょう。", "18"), ("18個です。もう一度。", "18"),
    ("答えは十八です。一緒に頑張りましょう。", "18"),
    # fractions, percent, powers
    ("2/4", "1/2"), ("½", "0.5"), ("2½", "2.5"), ("2 1/2", "2.5"), ("2と1/2", "5/2"), ("三分の一", "1/3"),
    ("2と3分の1", "7/3"), ("\\frac{1}{2}", "1/2"), ("100万分の1", "1/1000000"), ("50%", "50"), ("50％です", "0.5"),
    ("50パーセント", "50%"), ("50", "50%"), ("5割です", "50%"), ("3割5分", "35%"), ("0.35", "3割5分"), ("10³", "1000"),
    ("2^10", "1024"), ("1.5×10^3", "1500"), ("1.5×10⁻³", "0.0015"),
    # marks, ranges, ratios, dates
    ("答えは18⑤", "18"), ("⑤", "5"), ("正解は③です", "3"), ("⑳", "20"), ("㉑", "21"), ("3-5個", "5"),
    ("3〜5個", "3-5個"), ("3から5個です", "3～5"), ("3:2", "3対2"), ("2021/8/14", "2021年8月14日"),
    ("二〇二一年八月十四日", "2021年8月14日"), ("1時間30分です", "1時間30分"),
    # words, powers and marks of other writings
    ("No.5", "5"), ("ゼロです", "0"), ("答えは零個です。", "0"), ("0", "ゼロ"), ("2**10", "1024"),
    ("{1 \\over 2}", "1/2"),
    ("合計で18です。[1]", "18"), ("18※1", "18"), ("18です[^1]", "18"), ("[18]", "18"),
    ("2021年3月10日です", "3月10日"), ("10時30分", "10:30"),
    # no number is expected
    ("第二次世界大戦", "第二次世界大戦"), ("東京です。", "東京です。"),
]  # fmt: skip
WRONG = [
    ("3/2", "1/2"), ("4/3", "三分の一"), ("2", "1/2"), ("1/2", "2"), ("1:2", "3:2"), ("2-5個", "3-5個"),
    ("5個", "3-5個"), ("1時間30分", "30分"), ("10時30分", "30"), ("No.5", "0.5"), ("ゼロから始めて18", "0"),
    ("1937年8月14日", "2021年8月14日"), ("9時30分", "10時30分"), ("5", "-5"), ("-5", "5"), ("100%", "1"), ("", "5"),
    ("分かりません", "5"), ("一緒に考えましょう", "1"), ("千葉県", "1000"), ("三角形", "3"), ("25cm²", "2"),
    ("25cm²", "252"), ("18⑤", "185"), ("3,5", "35"), ("1,234", "234"), ("5.0", "50"), ("11引く1は10", "11"),
    ("第三次世界大戦", "第二次世界大戦"), ("京都です。", "東京です。"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "expected"), RIGHT)
def test_the_last_number_is_read_however_it_is_written(output: str, expected: str) -> None:
    assert last_number(output, expected)


@pytest.mark.parametrize(("output", "expected"), WRONG)
def test_another_number_is_wrong(output: str, expected: str) -> None:
    assert not last_number(output, expected)


def in_kanji(number: int) -> str:
    """``12345`` as ``一万二千三百四十五``."""
    parts = []
    for unit in ("", "万", "億"):
        number, four = divmod(number, 10_000)
        digits = [(four // 1000, "千"), (four // 100 % 10, "百"), (four // 10 % 10, "十"), (four % 10, "")]
        text = "".join(
            ("" if digit == 1 and name else "一二三四五六七八九"[digit - 1]) + name for digit, name in digits if digit
        )
        parts.append(text + unit if four else "")
    return "".join(reversed(parts)).replace("億千", "億一千").replace("万千", "万一千")


WAYS = [
    str,
    "{:,}".format,
    lambda number: f"{number:,}".replace(",", "\u202f"),
    lambda number: str(number).translate(str.maketrans("0123456789", "０１２３４５６７８９")),
    lambda number: str(number).translate(str.maketrans("0123456789", "〇一二三四五六七八九")),
    in_kanji,
]
AROUND = [
    "{}",
    "答えは{}です。",
    "約{}個",
    "{}円になります。",
    "**{}人**です！",
    "1たす1ではなく、{}です。",
    "①の答えは{}です",
]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 999_999_999), st.sampled_from(WAYS), st.sampled_from(AROUND), st.integers(1, 999_999_999))
def test_a_number_is_the_same_in_every_way_of_writing_it(number: int, way, around: str, other: int) -> None:
    said = around.format(way(number))
    assert last_number(said, str(number))
    assert last_number(said, str(other)) is (number == other)


@settings(max_examples=300, deadline=None)
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_compared_as_a_whole(one, other) -> None:
    assert last_number(f"答えは{one}です", str(other)) is (one == other)
    over, under = abs(one.numerator), one.denominator
    assert last_number(f"{under}分の{over}", f"{over}/{under}")


@settings(max_examples=400, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("0123456789.,-+/^%〜:e×¹²½⑤一二十百万億割分の年月日円個でs \u202f\\{}第です。")),
    st.text(),
)
def test_any_text_is_judged_and_is_right_where_it_says_just_what_is_expected(one: str, other: str) -> None:
    for match in MATCHES.values():
        match(one, other), match(other, one)
        for text in (one, other):
            assert match(text, text) or not normal(text)


def test_numbers_of_any_size_are_read() -> None:
    assert last_number("9" * 6000, "9" * 6000 + "個") and not last_number("9" * 6000, "9" * 5999)
    for text in ("1e999999999", "9^999999999", "0^-1", "5/0", "1" + ",000" * 3000):
        last_number(text, "5")


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("ａ Ｂ１", "aB1", True), ("ｶﾞｷﾞ", "ガギ", True), ("か\u3099", "が", True), ("東京　都\n", "東京都", True),
        ("東\u200b京", "東京", True), ("x²", "x2", False), ("①", "1", False), ("㍻", "平成", False),
        ("㎏", "kg", False),
        ("½", "1/2", False), ("ﬁ", "fi", False), ("…", "...", False), ("東京です", "東京", False),
        ("18", "18.0", False),
    ],
)  # fmt: skip
def test_exact_leaves_width_and_white_space_aside_and_nothing_else(output: str, expected: str, right: bool) -> None:
    assert exact(output, expected) is exact(expected, output) is right


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("答えは ロンドン です。", "ロンドン", True), ("答えはパリです。", "ロンドン", False),
        ("答えは5です", "5", True),
        ("５個です", "5個", True), ("15個です", "5", False), ("2.5です", "5", False), ("1,500円", "500", False),
        ("500,", "500", True), ("party", "art", False), ("the art of it", "art", True), ("New York市", "NewYork", True),
        ("①", "1", False), ("何か", "\u200b", False),
    ],
)  # fmt: skip
def test_contains_finds_whole_words_and_numbers(output: str, expected: str, right: bool) -> None:
    assert contains(output, expected) is right
