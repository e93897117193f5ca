"""Several sources in one data set: each read in its own way, taken by weight or count, and every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from helpers.hostile_prepare import one_tokenizer
from helpers.prepared import Prepared, prepare_as

from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, StageError
from ftkit.stages.prepare import outside_inputs

LETTERS = "いろはにほへとちりぬるをわかよたれそつねならむうゐのおくやまけふこえてあさきゆめみしゑひもせす"


def japanese(number: int) -> dict[str, Any]:
    """A row whose question is like no other's."""
    asked = "".join(Random(number).choices(LETTERS, k=30))
    return {"question": f"{asked}？", "answer": f"<think>{number}を見る。</think>{number}です。"}


def general(number: int) -> dict[str, Any]:
    words = " ".join(str((number + 7) ** 3 * step % 9973) for step in range(2, 20))
    said = [{"role": "user", "content": f"Sum {words}."}, {"role": "assistant", "content": f"It is {number}."}]
    return {"messages": said, "source": "handbook"}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sources(in_empty_folder: Path) -> Path:
    """A folder with 60 Japanese rows and one without thinking, and with 200 general ones in the layout of chats."""
    written(in_empty_folder / "ja.jsonl", [japanese(i) for i in range(60)] + [{"question": "1は？", "answer": "1"}])
    written(in_empty_folder / "chats.jsonl", [general(i) for i in range(200)])
    return in_empty_folder


CHATS = "option: messages, path: chats.jsonl, thinking: optional, reasoning_language: null"


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    with one_tokenizer():
        yield


def mixed(folder: Path, mix: str, *overrides: str, with_page: bool = False) -> Prepared:
    folder.mkdir(exist_ok=True)
    shown = ["experiment=tiny", "stage=prepare", "dataset=mix", f"dataset.mix={mix}", "dataset.heldout=0.2"]
    config = resolve([*shown, *overrides])
    if with_page:
        return prepare_as(config, folder)
    with patch("ftkit.data.report.write_report", return_value=[]):  # which takes longer than all the rest
        return prepare_as(config, folder)


def test_each_source_has_its_layout_its_share_and_its_account(sources: Path, tiny) -> None:
    made = mixed(sources / "a", f"{{ja: {{path: ja.jsonl, weight: 3}}, general: {{{CHATS}, weight: 1, heldout: 0.5}}}}")
    by_source = Counter((row["source"], row["split"]) for row in made.conversations)
    found = made.figures["sources"]
    for name in ("ja", "general"):
        assert found[name]["train"] == by_source[name, "train"] and found[name]["heldout"] == by_source[name, "heldout"]
        assert found[name]["rows"] == sum(found[name][k] for k in ("train", "heldout", "surplus", "rejected"))
    assert (found["ja"]["rows"], found["ja"]["rejected"], found["ja"]["surplus"]) == (61, 1, 0)
    assert (found["general"]["rows"], found["general"]["surplus"]) == (200, 180), "60 rows of 3 shares leave 20 for one"
    assert found["general"]["heldout"] / 20 > found["ja"]["heldout"] / 60, "each has a share of its own"
    assert made.figures["rows"] == 261 and made.figures["surplus"] == 180
    tokens = pq.read_table(made.folder / "tokens.parquet")
    assert Counter(tokens["source"].to_pylist()) == {"ja": 60, "general": 20}
    assert (
        sum(map(len, tokens["input_ids"].to_pylist()))
        > made.figures["tokens"]
        == sum(found[name]["tokens"] for name in found)
    )
    shown = {row["source"]: text for row, (text, _) in zip(made.tokens, made.texts(tiny), strict=True)}
    assert "reasoning language: Japanese" in shown["ja"] and "reasoning language" not in shown["general"]
    (refused,) = made.rejected
    assert (refused["source"], refused["row"], refused["where"]) == ("ja", 61, "ja.jsonl:61")
    numbers = [row["row"] for row in made.conversations]
    assert len(set(numbers)) == len(numbers) and min(n for n in numbers if n > 61) >= 62, "numbers go on"


def test_a_row_s_own_column_source_stays_beside_ours(sources: Path) -> None:
    made = mixed(sources / "a", f"{{general: {{{CHATS}, rows: 5}}}}")
    assert {(row["source"], row["source_source"]) for row in made.conversations} == {("general", "handbook")}


def test_prepare_says_and_shows_what_became_of_each_source(sources: Path) -> None:
    made = mixed(sources / "a", f"{{ja: {{path: ja.jsonl}}, general: {{{CHATS}, rows: 30}}}}", with_page=True)
    ja, of_general = (next(line for line in made.said if line.startswith(f"{name}: ")) for name in ("ja", "general"))
    assert ja.startswith("ja: 61 rows: ") and ", 1 refused, 0 left out; " in ja
    assert of_general.startswith("general: 200 rows: ") and ", 0 refused, 170 left out; " in of_general
    assert any("ja: refused 1: " in line and "dataset.mix.ja.thinking=optional" in line for line in made.said)
    assert "170 left out by weight or count" in made.summary
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    section = page.partition('id="sources"')[2].partition("</section>")[0]
    assert all(text in section for text in ("<th>ja</th>", "<th>general</th>", ">170<", ">200<"))
    assert "ja: the answer has no &lt;think&gt; block" in page


def test_the_same_rows_are_taken_each_time_by_any_number_of_processes_and_in_any_order(sources: Path) -> None:
    mix = f"{{ja: {{path: ja.jsonl, weight: 1}}, general: {{{CHATS}, weight: 1}}}}"
    first, again = (mixed(sources / name, mix) for name in ("a", "b"))
    for name in ("tokens.parquet", "reasoning_harmony.jsonl"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
    written(sources / "chats.jsonl", [general(i) for i in reversed(range(200))])
    backwards, other = mixed(sources / "c", mix), mixed(sources / "d", mix, "dataset.mix_seed=1")
    questions = [{str(row["messages"]) for row in made.conversations} for made in (first, backwards, other)]
    assert questions[0] == questions[1] != questions[2]
    assert len(questions[0]) == len(questions[2])


def test_an_equal_question_of_another_source_is_on_the_same_side(sources: Path) -> None:
    copies = [{"messages": [{"role": "user", "content": japanese(i)["question"]},
                            {"role": "assistant", "content": "Yes."}]} for i in range(30)]  # fmt: skip
    written(sources / "chats.jsonl", copies)
    made = mixed(sources / "a", f"{{ja: {{path: ja.jsonl}}, general: {{{CHATS}, heldout: 0.6}}}}")
    sides: dict[str, set[str]] = {}
    for row in made.conversations:
        asked = next(message["content"] for message in row["messages"] if message["role"] == "user")
        sides.setdefault(asked, set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values()) and {"heldout"} in sides.values()
    assert any(line.startswith("30 of general's questions are asked in other sources too") for line in made.said)


def test_a_source_brings_held_out_rows_of_its_own_and_another_goes_by_lot(sources: Path) -> None:
    written(sources / "dev.jsonl", [japanese(i) for i in range(100, 104)])
    made = mixed(sources / "a", f"{{ja: {{path: ja.jsonl, validation: dev.jsonl}}, general: {{{CHATS}, rows: 50}}}}")
    assert made.figures["sources"]["ja"]["heldout"] == 4 and made.figures["sources"]["general"]["heldout"] > 0


def test_a_count_that_a_source_does_not_have_is_said(sources: Path) -> None:
    made = mixed(sources / "a", f"{{general: {{{CHATS}, rows: 500}}}}")
    assert "general has 200 rows, fewer than dataset.mix.general.rows=500" in made.said


@pytest.mark.parametrize(
    ("rows", "what", "cure"),
    [
        ([], "the file is empty", "dataset.mix.general.path=<your rows>"),
        ([{"messages": None}], "none of the 1 rows can be used", ""),
        ([{"chat": []}], "no column 'messages'", "dataset.mix.general.columns.messages=…"),
    ],
    ids=["empty", "unusable", "another column"],
)
def test_a_source_without_rows_stops_and_is_named(rows: list, what: str, cure: str, sources: Path) -> None:
    written(sources / "chats.jsonl", rows)
    with pytest.raises(StageError, match=what) as error:
        mixed(sources / "a", f"{{ja: {{path: ja.jsonl}}, general: {{{CHATS}}}}}")
    assert error.value.where.startswith("general: ") and cure in error.value.cure


def settings_of(*overrides: str):
    return resolve(["experiment=tiny", "stage=plan", "dataset=mix", *overrides]).dataset


def test_an_option_gives_the_layout_and_the_source_has_the_last_word(sources: Path) -> None:
    found = settings_of(
        "dataset.mix={ja: {path: ja.jsonl}, sample: {option: sample, columns: {thinking: reasoning}},"
        " chats: {option: sharegpt, path: chats.jsonl, turns: {role: who}}}",
        "dataset.heldout=0.3",
        "dataset.columns.question=prompt",
    ).sources
    assert found["ja"].columns.question == "prompt" and found["ja"].heldout == 0.3
    sample, chats = found["sample"], found["chats"]
    assert (sample.path, sample.heldout, sample.columns.question, sample.columns.thinking) == (
        "package:sample.jsonl", 0.2, "question", "reasoning",
    )  # fmt: skip
    assert chats.columns.messages == "conversations" and chats.columns.question is None and chats.heldout == 0.3
    assert (chats.turns.role, chats.turns.content, chats.turns.roles["gpt"]) == ("who", "value", "assistant")


def test_a_mix_is_written_in_a_file_of_its_own(sources: Path) -> None:
    (sources / "conf/dataset").mkdir(parents=True)
    (sources / "conf/dataset/ours.yaml").write_text(
        "defaults: [mix, _self_]\nmix:\n  ja: {path: ja.jsonl, weight: 3}\n"
        "  general: {option: messages, path: chats.jsonl, weight: 1}\n"
    )
    found = resolve(["experiment=tiny", "stage=plan", "dataset=ours", "dataset.mix.general.weight=2"]).dataset
    assert found.mix and {name: source.weight for name, source in found.mix.items()} == {"ja": 3, "general": 2}


def test_a_changed_file_of_any_source_is_noticed(sources: Path) -> None:
    config = resolve(["experiment=tiny", "stage=plan", "dataset=mix", f"dataset.mix={{ja: {{path: ja.jsonl}}, b: {{{CHATS}}}}}"])  # fmt: skip  # noqa: E501
    before = outside_inputs(config)["rows"]
    written(sources / "chats.jsonl", [general(1)])
    assert outside_inputs(config)["rows"] != before


@pytest.mark.parametrize(
    ("mix", "key", "what", "cure"),
    [
        ("{ja: {path: ja.jsonl, wieght: 2}}", "dataset.mix.ja.wieght", "unknown key", "dataset.mix.ja.weight?"),
        ("{ja: {path: ja.jsonl, columns: {qestion: a}}}", "dataset.mix.ja.columns.qestion", "unknown key",
         "dataset.mix.ja.columns.question?"),
        ("{ja: {path: ja.jsonl, weight: 0}}", "dataset.mix.ja.weight", "0 is not greater than 0", ""),
        ("{ja: {path: ja.jsonl, rows: -3}}", "dataset.mix.ja.rows", "-3 is not greater than 0", ""),
        ("{ja: {weight: 1}}", "dataset.mix.ja.path", "is missing", "dataset.mix.ja.path=<its rows>"),
        ("{a-b: {path: ja.jsonl}}", "dataset.mix.a-b", "is not a word of letters, digits and _", ""),
        ("{ja: {option: mesages, path: ja.jsonl}}", "dataset.mix.ja.option", "no option 'mesages'",
         "dataset.mix.ja.option=messages?"),
        ("{ja: {path: ja.jsonl, overlength: drop}}", "dataset.mix.ja.overlength", "is the same for all sources",
         "dataset.overlength=…"),
        ("{ja: ja.jsonl}", "dataset.mix.ja", "is not a mapping", ""),
    ],
)  # fmt: skip
def test_what_no_source_can_be_is_refused_with_its_key(mix: str, key: str, what: str, cure: str, sources: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(f"dataset.mix={mix}")
    (problem,) = error.value.problems
    assert problem.key == key and what in problem.what and cure in problem.cure
