"""Generated rows in the shape of APTO's Japanese reasoning data: short problems whose thinking and answers are right.

    python -m ftkit.data.sample --rows 1000 --seed 1 --out rows.jsonl

`sample.jsonl`, which ships with ftkit, holds the first 256 rows of seed 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from ftkit.data import vocabulary as words
from ftkit.data.problem import Problem
from ftkit.data.shop import shop
from ftkit.errors import StageError
from ftkit.files import written_aside

MISSES = 2000
"""A kind counts as exhausted after so many draws in a row that gave nothing new."""


def generate(rows: int, seed: int = 0, kinds: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """Yield ``rows`` rows: ``question``, ``answer``, ``question_type``, ``answer_format``, ``dialogue_type``.

    Equal arguments give equal rows, and fewer rows are the beginning of more. No question occurs twice.

    Raises:
        ValueError: as ``problems``.
    """
    for problem in problems(rows, seed, kinds):
        yield problem.row()


def problems(rows: int, seed: int = 0, kinds: Sequence[str] | None = None) -> Iterator[Problem]:
    """Yield ``rows`` problems with distinct questions, drawn from ``kinds`` by ``SHARES``.

    Where ``kinds`` names none they are those of ``sample.jsonl``, on which the tiny models that ship were trained.

    A kind with few distinct questions leaves its share to the others once it is exhausted.

    Raises:
        ValueError: an unknown kind, or more rows than ``kinds`` have distinct questions.
    """
    open_kinds = list(LEARNT if kinds is None else kinds)
    if unknown := [kind for kind in open_kinds if kind not in KINDS]:
        raise ValueError(f"no kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    random = Random(seed)
    seen: set[str] = set()
    while len(seen) < rows:
        if not open_kinds:
            raise ValueError(f"{rows} rows were asked for, but there are only {len(seen)} distinct questions")
        kind = random.choices(open_kinds, [SHARES[kind] for kind in open_kinds])[0]
        problem = _unseen(kind, random, seen)
        if problem is None:
            open_kinds.remove(kind)
            continue
        seen.add(problem.question)
        yield problem


def _unseen(kind: str, random: Random, seen: set[str]) -> Problem | None:
    for _ in range(MISSES):
        problem = KINDS[kind](random)
        if problem.question not in seen:
            return problem
    return None


def _arithmetic(random: Random) -> Problem:
    return random.choice((_more, _fewer, _price, _sum, _difference))(random)


def _more(random: Random) -> Problem:
    thing, counter, english = random.choice(words.THINGS)
    a, b = random.randint(2, 20), random.randint(2, 10)
    return Problem(
        f"{thing}が{a}{counter}あります。{b}{counter}もらうと、全部で何{counter}になりますか？",
        f"はじめに{thing}が{a}{counter}あり、{b}{counter}増えます。{a}+{b}={a + b}なので、全部で{a + b}{counter}です。",
        f"There are {a} {english} at first and {b} are added. {a}+{b}={a + b}, so the total is {a + b}.",
        f"全部で{a + b}{counter}です。",
        "arithmetic",
        "number",
    )


def _fewer(random: Random) -> Problem:
    thing, counter, english = random.choice(words.THINGS)
    a = random.randint(4, 20)
    b = random.randint(2, min(a - 1, 10))
    return Problem(
        f"{thing}が{a}{counter}あります。友だちに{b}{counter}あげると、残りは何{counter}ですか？",
        f"はじめに{thing}が{a}{counter}あり、{b}{counter}減ります。{a}-{b}={a - b}なので、残りは{a - b}{counter}です。",
        f"There are {a} {english} at first and {b} are given away. {a}-{b}={a - b}, so {a - b} are left.",
        f"残りは{a - b}{counter}です。",
        "arithmetic",
        "number",
    )


def _price(random: Random) -> Problem:
    thing, counter, english = random.choice(words.THINGS)
    price, count = random.randint(2, 9) * random.choice((10, 100)), random.randint(2, 9)
    total = price * count
    return Problem(
        f"1{counter}{price}円の{thing}を{count}{counter}買うと、代金はいくらですか？",
        f"{thing}は1{counter}{price}円で、{count}{counter}買います。{price}×{count}={total}なので、代金は{total}円です。",
        f"{count} {english} at {price} yen each are bought. {price}×{count}={total}, so the price is {total} yen.",
        f"代金は{total}円です。",
        "arithmetic",
        "number",
    )


def _sum(random: Random) -> Problem:
    a, b = random.randint(2, 40), random.randint(2, 10)
    return Problem(
        random.choice((f"{a}+{b}を計算してください。", f"{a}たす{b}はいくつですか？")),
        f"{a}に{b}をたします。{a}+{b}={a + b}なので、答えは{a + b}です。",
        f"Add {b} to {a}. {a}+{b}={a + b}, so the answer is {a + b}.",
        f"{a + b}です。",
        "arithmetic",
        "number",
    )


def _difference(random: Random) -> Problem:
    a = random.randint(4, 40)
    b = random.randint(2, min(a - 1, 10))
    return Problem(
        random.choice((f"{a}-{b}を計算してください。", f"{a}ひく{b}はいくつですか？")),
        f"{a}から{b}をひきます。{a}-{b}={a - b}なので、答えは{a - b}です。",
        f"Subtract {b} from {a}. {a}-{b}={a - b}, so the answer is {a - b}.",
        f"{a - b}です。",
        "arithmetic",
        "number",
    )


def _date(random: Random) -> Problem:
    return random.choice((_weekday, _weekday, _calendar))(random)


def _weekday(random: Random) -> Problem:
    today, days, past = random.randrange(7), random.randint(1, 14), random.random() < 0.3
    sign, word, english = (-1, "前", "before") if past else (1, "後", "after")
    (start, start_en), (end, end_en) = words.WEEKDAYS[today], words.WEEKDAYS[(today + sign * days) % 7]
    weeks, rest = divmod(days, 7)
    whole = whole_en = ""
    if weeks:
        whole = f"{days}=7×{weeks}+{rest}なので、{f'{rest}日{word}と' if rest else ''}同じ曜日です。"
        whole_en = (
            f"{days}=7×{weeks}+{rest}, so it is the same weekday{f' as {_days(rest)} {english}' if rest else ''}. "
        )
    return Problem(
        f"今日は{start}曜日です。{days}日{word}は何曜日ですか？",
        f"今日は{start}曜日です。{whole}{start}曜日の{days}日{word}は{end}曜日です。",
        f"Today is {start_en}. {whole_en}{_days(days)} {english} {start_en} is {end_en}.",
        f"{end}曜日です。",
        "date",
        "date",
    )


def _days(count: int) -> str:
    return f"{count} day{'s' if count > 1 else ''}"


def _calendar(random: Random) -> Problem:
    month = random.choice([m for m in range(1, 13) if m != 2])  # February's length depends on the year
    length, days = words.DAYS_IN_MONTH[month], random.randint(2, 10)
    day = random.randint(1, length)
    total, following = day + days, month % 12 + 1
    fact, fact_en = f"{month}月は{length}日までです。", f"Month {month} has {length} days. "
    if total <= length:
        end, end_en = f"{month}月{total}日", f"{month}/{total}"
        step, step_en = f"{day}+{days}={total}なので、", f"{day}+{days}={total}, so "
    else:
        end, end_en = f"{following}月{total - length}日", f"{following}/{total - length}"
        step = f"{day}+{days}={total}、{total}-{length}={total - length}なので、"
        step_en = f"{day}+{days}={total}, {total}-{length}={total - length}, so "
    return Problem(
        f"{month}月{day}日の{days}日後は何月何日ですか？",
        f"{fact}{step}{end}です。",
        f"{fact_en}{step_en}it is {end_en}.",
        f"{end}です。",
        "date",
        "date",
    )


def _unit(random: Random) -> Problem:
    big, small, factor, big_en, small_en = random.choice(words.UNITS)
    count = random.randint(2, 99 if factor in (10, 100, 1000) else 9)
    many = count * factor
    fact, fact_en = f"1{big}は{factor}{small}です。", f"One {big_en} is {factor} {small_en}s. "
    if random.random() < 0.6:
        question, result = f"{count}{big}は何{small}ですか？", f"{many}{small}"
        step, step_en = f"{count}×{factor}={many}", f"{count}×{factor}={many}, so it is {many} {small_en}s."
    else:
        question, result = f"{many}{small}は何{big}ですか？", f"{count}{big}"
        step, step_en = f"{many}÷{factor}={count}", f"{many}÷{factor}={count}, so it is {count} {big_en}s."
    return Problem(
        question, f"{fact}{step}なので、{result}です。", fact_en + step_en, f"{result}です。", "unit", "number"
    )


def _comparison(random: Random) -> Problem:
    return random.choice((_larger, _longer))(random)


def _larger(random: Random) -> Problem:
    a, b = random.sample(range(2, random.choice((100, 1000))), 2)
    word, english, pick = random.choice((("大きい", "larger", max), ("小さい", "smaller", min)))
    best = pick(a, b)
    return Problem(
        random.choice((f"{a}と{b}ではどちらが{word}ですか？", f"{a}と{b}のうち、{word}方を答えてください。")),
        f"{a}と{b}を比べます。{best}の方が{word}です。",
        f"Compare {a} and {b}. {best} is {english}.",
        f"{best}です。",
        "comparison",
        "choice",
    )


def _longer(random: Random) -> Problem:
    big, small, factor, big_en, small_en, word, english = random.choice(words.MEASURES)
    count = random.randint(2, 9)
    other = random.choice([n for n in range(factor // 10, 10 * factor, factor // 10) if n != count * factor])
    parts = [
        (count * factor, f"{count}{big}", f"{count} {big_en}s"),
        (other, f"{other}{small}", f"{other} {small_en}s"),
    ]
    random.shuffle(parts)
    (_, first, _), (_, second, _) = parts
    _, best, best_en = max(parts)
    return Problem(
        f"{first}と{second}ではどちらが{word}ですか？",
        f"{count}{big}は{count * factor}{small}です。{count * factor}と{other}を比べると、{best}の方が{word}です。",
        f"{count} {big_en}s are {count * factor} {small_en}s. "
        f"Compare {count * factor} and {other}: {best_en} is {english}.",
        f"{best}です。",
        "comparison",
        "choice",
    )


def _logic(random: Random) -> Problem:
    return random.choice((_order, _order, _parity, _sequence))(random)


def _order(random: Random) -> Problem:
    people = random.sample(words.PEOPLE, 3)
    joined, plain, ranked, most, least, plain_en, most_en, least_en = random.choice(words.ORDERS)
    (a, a_en), (b, b_en), (c, c_en) = people
    upper, lower = f"{a}さんは{b}さんより", f"{b}さんは{c}さんより"
    facts = random.choice((f"{upper}{joined}、{lower}{plain}です。", f"{lower}{joined}、{upper}{plain}です。"))
    asked, asked_en, (who, who_en) = random.choice(((most, most_en, people[0]), (least, least_en, people[2])))
    return Problem(
        f"{facts}{asked}のは誰ですか？",
        f"{ranked}順に並べると、{a}、{b}、{c}です。{asked}のは{who}さんです。",
        f"The order is {a_en}, {b_en}, {c_en}, each {plain_en} than the next. The {asked_en} is {who_en}.",
        f"{who}さんです。",
        "logic",
        "name",
    )


def _parity(random: Random) -> Problem:
    n = random.randint(10, 999)
    word, english = ("奇数", "odd") if n % 2 else ("偶数", "even")
    return Problem(
        random.choice((f"{n}は奇数ですか、偶数ですか？", f"{n}は偶数ですか、奇数ですか？")),
        f"{n}の一の位は{n % 10}です。{n % 10}は{word}なので、{n}は{word}です。",
        f"The last digit of {n} is {n % 10}. {n % 10} is {english}, so {n} is {english}.",
        f"{word}です。",
        "logic",
        "choice",
    )


def _sequence(random: Random) -> Problem:
    start, step = random.randint(1, 20), random.randint(2, 9)
    a, b, c, d = (start + i * step for i in range(4))
    return Problem(
        f"{a}、{b}、{c}の次の数は何ですか？",
        f"{a}、{b}、{c}は{step}ずつ増えています。{c}+{step}={d}なので、次の数は{d}です。",
        f"{a}, {b}, {c} grow by {step}. {c}+{step}={d}, so the next number is {d}.",
        f"{d}です。",
        "logic",
        "number",
    )


def _knowledge(random: Random) -> Problem:
    country, capital, country_en, capital_en = random.choice(words.CAPITALS)
    thinking = f"{country}の首都は{capital}です。", f"The capital of {country_en} is {capital_en}."
    if random.random() < 0.7:
        question = random.choice((f"{country}の首都はどこですか？", f"{country}の首都を教えてください。"))
        return Problem(question, *thinking, f"{capital}です。", "knowledge", "name")
    return Problem(f"{capital}はどの国の首都ですか？", *thinking, f"{country}です。", "knowledge", "name")


LEARNT: dict[str, Callable[[Random], Problem]] = {
    "arithmetic": _arithmetic,
    "date": _date,
    "unit": _unit,
    "comparison": _comparison,
    "logic": _logic,
    "knowledge": _knowledge,
}
"""The kinds that the tiny models which ship have learnt."""

KINDS = LEARNT | {"shop": shop}
"""Draws one problem of each kind; the names are the values of the column ``question_type``."""

SHARES = {"arithmetic": 4, "date": 4, "unit": 3, "comparison": 3, "logic": 4, "knowledge": 1, "shop": 10}
"""How often each kind is drawn, relative to the others."""


def write(path: Path, rows: int, seed: int, kinds: Sequence[str] | None = None) -> None:
    """Write ``rows`` rows as JSON lines in UTF-8; the file appears only when it is whole."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in generate(rows, seed, kinds)]
    with written_aside(path) as aside:
        aside.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ftkit.data.sample", description="Write generated Japanese reasoning rows."
    )
    parser.add_argument("--rows", type=int, default=256, help="how many rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other rows (default: %(default)s)")
    parser.add_argument("--kinds", help="of " + ", ".join(KINDS) + f"; or all (default: {','.join(LEARNT)})")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    arguments = parser.parse_args()
    try:
        kinds = list(KINDS) if arguments.kinds == "all" else arguments.kinds and arguments.kinds.split(",")
        write(arguments.out, arguments.rows, arguments.seed, kinds)
    except (StageError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
