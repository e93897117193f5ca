"""The words that generated problems are made of."""

THINGS = (
    ("りんご", "個", "apples"),
    ("みかん", "個", "oranges"),
    ("卵", "個", "eggs"),
    ("石", "個", "stones"),
    ("本", "冊", "books"),
    ("ノート", "冊", "notebooks"),
    ("えんぴつ", "本", "pencils"),
    ("花", "本", "flowers"),
    ("切手", "枚", "stamps"),
    ("写真", "枚", "photos"),
)
"""Thing, its counter, English plural."""

WEEKDAYS = (
    ("月", "Monday"),
    ("火", "Tuesday"),
    ("水", "Wednesday"),
    ("木", "Thursday"),
    ("金", "Friday"),
    ("土", "Saturday"),
    ("日", "Sunday"),
)

DAYS_IN_MONTH = {1: 31, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
"""Without February, whose length depends on the year."""

UNITS = (
    ("メートル", "センチメートル", 100, "meter", "centimeter"),
    ("キロメートル", "メートル", 1000, "kilometer", "meter"),
    ("センチメートル", "ミリメートル", 10, "centimeter", "millimeter"),
    ("キログラム", "グラム", 1000, "kilogram", "gram"),
    ("リットル", "ミリリットル", 1000, "liter", "milliliter"),
    ("時間", "分", 60, "hour", "minute"),
    ("分", "秒", 60, "minute", "second"),
    ("日", "時間", 24, "day", "hour"),
    ("週間", "日", 7, "week", "day"),
)
"""Large unit, small unit, how many small ones make a large one, English singulars."""

MEASURES = (
    ("メートル", "センチメートル", 100, "meter", "centimeter", "長い", "longer"),
    ("キロメートル", "メートル", 1000, "kilometer", "meter", "長い", "longer"),
    ("キログラム", "グラム", 1000, "kilogram", "gram", "重い", "heavier"),
    ("リットル", "ミリリットル", 1000, "liter", "milliliter", "多い", "more"),
)
"""As in ``UNITS``, then what more of it is called in Japanese and in English."""

PEOPLE = (
    ("太郎", "Taro"),
    ("花子", "Hanako"),
    ("健太", "Kenta"),
    ("美咲", "Misaki"),
    ("大輔", "Daisuke"),
    ("陽菜", "Hina"),
    ("翔", "Sho"),
    ("さくら", "Sakura"),
)

ORDERS = (
    ("背が高く", "背が高い", "背が高い", "一番背が高い", "一番背が低い", "taller", "tallest", "shortest"),
    ("足が速く", "足が速い", "足が速い", "一番足が速い", "一番足が遅い", "faster", "fastest", "slowest"),
    ("年上で", "年上", "年上の", "一番年上な", "一番年下な", "older", "oldest", "youngest"),
)
"""Joining form, plain form, form before 順, most, least, and the English comparative and both superlatives."""

CAPITALS = (
    ("日本", "東京", "Japan", "Tokyo"),
    ("オーストラリア", "キャンベラ", "Australia", "Canberra"),
    ("フランス", "パリ", "France", "Paris"),
    ("ドイツ", "ベルリン", "Germany", "Berlin"),
    ("イタリア", "ローマ", "Italy", "Rome"),
    ("スペイン", "マドリード", "Spain", "Madrid"),
    ("イギリス", "ロンドン", "the United Kingdom", "London"),
    ("カナダ", "オタワ", "Canada", "Ottawa"),
    ("アメリカ", "ワシントンD.C.", "the United States", "Washington, D.C."),
    ("ブラジル", "ブラジリア", "Brazil", "Brasilia"),
    ("アルゼンチン", "ブエノスアイレス", "Argentina", "Buenos Aires"),
    ("メキシコ", "メキシコシティ", "Mexico", "Mexico City"),
    ("中国", "北京", "China", "Beijing"),
    ("韓国", "ソウル", "South Korea", "Seoul"),
    ("インド", "ニューデリー", "India", "New Delhi"),
    ("タイ", "バンコク", "Thailand", "Bangkok"),
    ("ベトナム", "ハノイ", "Vietnam", "Hanoi"),
    ("エジプト", "カイロ", "Egypt", "Cairo"),
    ("ケニア", "ナイロビ", "Kenya", "Nairobi"),
    ("トルコ", "アンカラ", "Turkey", "Ankara"),
    ("ギリシャ", "アテネ", "Greece", "Athens"),
    ("ポルトガル", "リスボン", "Portugal", "Lisbon"),
    ("スウェーデン", "ストックホルム", "Sweden", "Stockholm"),
    ("ノルウェー", "オスロ", "Norway", "Oslo"),
    ("フィンランド", "ヘルシンキ", "Finland", "Helsinki"),
    ("ニュージーランド", "ウェリントン", "New Zealand", "Wellington"),
)
"""Country, capital, and both in English."""
