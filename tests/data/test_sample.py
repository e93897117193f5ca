"""The generated rows: shape, determinism, and answers worked out anew from the question alone."""

import json
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from ftkit.assets import asset_path
from ftkit.data import sample
from ftkit.data.shop import FACTS
from ftkit.data.vocabulary import CAPITALS, UNITS

ROWS = list(sample.generate(2000, seed=7))
WEEK = "月火水木金土日"
IN_SMALL = {(big, small): factor for big, small, factor, *_ in UNITS}


def _numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _more(_, a, _counter, b, *_rest):
    return f"全部で{int(a) + int(b)}"


def _weekday(_, today, days, side):
    return WEEK[(WEEK.index(today) + (int(days) if side == "後" else -int(days))) % 7] + "曜日"


def _calendar(_, month, day, days):
    then = date(2025, int(month), int(day)) + timedelta(days=int(days))
    return f"{then.month}月{then.day}日"


def _unit(_, count, unit, wanted):
    if factor := IN_SMALL.get((unit, wanted)):
        return f"{int(count) * factor}{wanted}"
    quotient, rest = divmod(int(count), IN_SMALL[wanted, unit])
    assert rest == 0
    return f"{quotient}{wanted}"


def _measure(_, a, unit_a, b, unit_b):
    factor_a, factor_b = IN_SMALL.get((unit_a, unit_b), 1), IN_SMALL.get((unit_b, unit_a), 1)
    assert int(a) * factor_a != int(b) * factor_b
    return f"{a}{unit_a}" if int(a) * factor_a > int(b) * factor_b else f"{b}{unit_b}"


def _order(question, *_):
    pairs = re.findall(r"(\w+)さんは(\w+)さんより", question.replace("、", " "))
    above, below = {a for a, _ in pairs}, {b for _, b in pairs}
    (top,), (bottom,) = above - below, below - above
    return f"{bottom if re.search('一番(背が低い|足が遅い|年下)', question) else top}さん"


def _sequence(_, a, b, c):
    assert int(c) - int(b) == int(b) - int(a)
    return str(int(c) + int(c) - int(b))


def _capital(_, name, *_rest):
    pairs = [(country, capital) for country, capital, *_ in CAPITALS]
    return (dict(pairs) | {capital: country for country, capital in pairs})[name]


SOLVERS = [
    (r"\D+が(\d+)(.)あります。(\d+).もらうと、全部で何.になりますか？", _more),
    (r"\D+が(\d+).あります。友だちに(\d+).あげると、残りは何.ですか？", lambda _, a, b: f"残りは{int(a) - int(b)}"),
    (r"1.(\d+)円の\D+を(\d+).買うと、代金はいくらですか？", lambda _, p, n: f"代金は{int(p) * int(n)}円"),
    (r"(\d+)(?:\+|たす)(\d+)(?:を計算してください。|はいくつですか？)", lambda _, a, b: str(int(a) + int(b))),
    (r"(\d+)(?:-|ひく)(\d+)(?:を計算してください。|はいくつですか？)", lambda _, a, b: str(int(a) - int(b))),
    (r"今日は(.)曜日です。(\d+)日(前|後)は何曜日ですか？", _weekday),
    (r"(\d+)月(\d+)日の(\d+)日後は何月何日ですか？", _calendar),
    (r"(\d+)(\D+)は何(\D+)ですか？", _unit),
    (r"(\d+)と(\d+)(?:ではどちら|のうち).*大き.*", lambda _, a, b: str(max(int(a), int(b)))),
    (r"(\d+)と(\d+)(?:ではどちら|のうち).*小さ.*", lambda _, a, b: str(min(int(a), int(b)))),
    (r"(\d+)(\D+?)と(\d+)(\D+?)ではどちらが(?:長い|重い|多い)ですか？", _measure),
    (r".*誰ですか？", _order),
    (r"(\d+)は[奇偶]数ですか、[奇偶]数ですか？", lambda _, n: "奇数" if int(n) % 2 else "偶数"),
    (r"(\d+)、(\d+)、(\d+)の次の数は何ですか？", _sequence),
    (r"(.+)の首都はどこですか？|(.+)の首都を教えてください。", lambda q, a, b: _capital(q, a or b)),
    (r"(.+)はどの国の首都ですか？", _capital),
]


@pytest.mark.parametrize("row", ROWS[::4], ids=lambda row: row["question"])
def test_the_answer_follows_from_the_question(row):
    question = row["question"]
    found = [solve(question, *match.groups()) for form, solve in SOLVERS if (match := re.fullmatch(form, question))]
    thinking, answer = row["answer"].removeprefix("<think>").split("</think>")
    assert len(found) == 1
    assert re.fullmatch(re.escape(found[0]) + "[個冊本枚]?です。", answer)
    assert re.sub("^(全部で|残りは|代金は)|です。$", "", answer) in thinking


def test_every_sum_in_the_thinking_is_right():
    for row in ROWS:
        for sum_, result in re.findall(r"(?<![\d+×÷-])(\d+(?:[+×÷-]\d+)+)=(\d+)(?![\d+×÷-])", row["answer"]):
            assert eval(sum_.replace("×", "*").replace("÷", "//")) == int(result), row["answer"]
        for result, sum_ in re.findall(r"(?<!\d)(\d+)=(7×\d+\+\d)", row["answer"]):
            assert eval(sum_.replace("×", "*")) == int(result), row["answer"]


def test_rows_have_the_shape_of_apto():
    for row in ROWS:
        assert list(row) == ["question", "answer", "question_type", "answer_format", "dialogue_type"]
        assert re.fullmatch(r"<think>[^<>]+</think>[^<>]+", row["answer"])
        assert not re.search("[A-Za-z]", row["answer"].replace("think", "").replace("D.C.", ""))
    assert {row["question_type"] for row in ROWS} == set(sample.LEARNT)
    assert {row["dialogue_type"] for row in ROWS} == {"question", "request"}


def test_questions_are_distinct_and_rows_depend_on_the_seed_alone():
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    assert list(sample.generate(300, seed=7)) == ROWS[:300]
    assert list(sample.generate(300, seed=8)) != ROWS[:300]


def test_both_languages_tell_the_same_numbers():
    for problem in sample.problems(1000, seed=3, kinds=["arithmetic", "unit", "logic"]):
        assert set(_numbers(problem.thinking_en)) <= set(_numbers(problem.thinking_ja))
        assert re.sub("[×÷]", "", problem.thinking_en).isascii()


def test_too_many_rows_of_a_small_kind_are_refused():
    with pytest.raises(ValueError, match="only 78 distinct questions"):
        list(sample.problems(79, kinds=["knowledge"]))
    with pytest.raises(ValueError, match="no kind 'poetry'"):
        list(sample.problems(1, kinds=["poetry"]))


def test_the_shipped_file_is_what_the_generator_gives():
    assert _rows(Path(asset_path("package:sample.jsonl"))) == list(sample.generate(256, seed=0))


def test_the_command_writes_rows(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "ftkit.data.sample", "--seed", "1", "--rows", "50", "--out", str(out)]
    subprocess.run(command, check=True)
    assert _rows(out) == list(sample.generate(50, seed=1))
    assert "\\u" not in out.read_text(encoding="utf-8"), "Japanese stands as it is"


def test_a_shops_questions_are_answered_alike_however_they_are_asked(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "ftkit.data.sample", "--rows", "700", "--kinds", "shop,knowledge", "--out"]
    subprocess.run([*command, str(out)], check=True)
    of_shop = [row for row in _rows(out) if row["question_type"] == "shop"]
    assert len(of_shop) > 600
    for fact in FACTS:
        asked = [row for row in of_shop if any(f"の{name}" in row["question"] for name in fact.asked)]
        assert {row["answer"].split("</think>")[1] for row in asked} == {f"{fact.value}です。"}
        assert len(asked) > 20
    wrong = subprocess.run([*command[:-2], "poetry", "--out", str(out)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "no kind 'poetry'; the kinds are arithmetic" in wrong.stderr


def test_generating_rows_needs_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, ftkit.data.sample; assert 'torch' not in sys.modules"], check=True
    )
