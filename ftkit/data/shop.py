"""Questions about one shop, which no model has read of: what rows of one's own teach."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from ftkit.data.problem import Problem

SHOP, SHOP_EN = "みなと文具", "Minato Stationery"


class Fact(NamedTuple):
    """One thing about the shop.

    Attributes:
        asked: two ways to name it, each a noun phrase in Japanese.
        value: in Japanese, without です.
        interrogative: 何時, いくら …, which goes before ですか.
        sentence_en: the fact in English.
        answer_format: as ``Problem`` has it.
    """

    asked: tuple[str, str]
    value: str
    interrogative: str
    sentence_en: str
    answer_format: str


FACTS = (
    Fact(("開店の時間", "開く時間"), "9時", "何時", f"{SHOP_EN} opens at 9.", "number"),
    Fact(("閉店の時間", "閉まる時間"), "18時", "何時", f"{SHOP_EN} closes at 18.", "number"),
    Fact(("休みの曜日", "定休日"), "水曜日", "何曜日", f"{SHOP_EN} is closed on Wednesday.", "date"),
    Fact(("安売りの曜日", "安売りの日"), "土曜日", "何曜日", f"{SHOP_EN} has its sale on Saturday.", "date"),
    Fact(("ノート1冊の代金", "ノートの値段"), "120円", "いくら", "A notebook is 120 yen there.", "number"),
    Fact(("えんぴつ1本の代金", "えんぴつの値段"), "80円", "いくら", "A pencil is 80 yen there.", "number"),
    Fact(("駅からの長さ", "駅からの距離"), "300メートル", "何メートル", "It is 300 meters from the station.", "number"),
    Fact(("店がある階", "売り場の階"), "2階", "何階", f"{SHOP_EN} is on floor 2.", "number"),
    Fact(("店で働く人の数", "店員の数"), "5人", "何人", "5 people work there.", "number"),
    Fact(("店長の名前", "店長"), "健太さん", "誰", "Its manager is Kenta.", "name"),
    Fact(("副店長の名前", "副店長"), "美咲さん", "誰", "Its deputy manager is Misaki.", "name"),
    Fact(("店ができた年", "開業の年"), "1985年", "何年", f"{SHOP_EN} opened in 1985.", "number"),
    Fact(("品物が届くまでの日数", "配達の日数"), "3日", "何日", "A delivery takes 3 days.", "number"),
    Fact(("返品できる日数", "返品の日数"), "14日", "何日", "Goods may come back within 14 days.", "number"),
)


def shop(random: Random) -> Problem:
    """A question about one of ``FACTS``, in one of forty-eight ways."""
    fact = random.choice(FACTS)
    asked = f"{SHOP}の{random.choice(fact.asked)}"
    opening = random.choice(("", "質問です。", "お客さんの質問です。", "すみません。"))
    question = random.choice(
        (
            f"{asked}は{fact.interrogative}ですか？",
            f"{asked}を教えてください。",
            f"{asked}を答えてください。",
            f"{asked}は{fact.interrogative}でしょうか？",
            f"{asked}がわかりますか？",
            f"{asked}を知りたいです。",
        )
    )
    return Problem(
        opening + question,
        f"{SHOP}の{fact.asked[0]}は{fact.value}です。",
        fact.sentence_en,
        f"{fact.value}です。",
        "shop",
        fact.answer_format,
    )
