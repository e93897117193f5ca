"""Files of questions in the forms in which they are published: read, asked and judged. The rows here are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.evaluation.choices import place_of
from ftkit.evaluation.matching import MATCHES
from ftkit.evaluation.questions import Question, task_file, task_questions
from ftkit.models.loading import load_tokenizer

ASK = "正しいものを1つ選び、最後にその番号を書いてください。"


def read(option: str, path: Path, *overrides: str) -> list[Question]:
    config = resolve(["experiment=tiny", "stage=plan", f"evaluation={option}", f"evaluation.path={path}", *overrides])
    found = task_file(config.evaluation, None)
    assert found is not None
    return task_questions(found, config, load_tokenizer(config.model))


def is_right(option: str, path: Path, output: str, expected: str) -> bool:
    config = resolve(["experiment=tiny", "stage=plan", f"evaluation={option}", f"evaluation.path={path}"])
    return MATCHES[config.evaluation.match](output, expected)


def test_jcommonsenseqa(tmp_path: Path) -> None:
    names = ("傘", "帽子", "手袋", "靴", "眼鏡")
    row = {"q_id": 7, "question": "雨の日に差すものは？", "label": 0} | {f"choice{i}": n for i, n in enumerate(names)}
    path = tmp_path / "valid.json"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in (row, row | {"label": 4})))
    first, last = read("jcommonsenseqa", path)
    assert first.question == f"雨の日に差すものは？\n\n1. 傘\n2. 帽子\n3. 手袋\n4. 靴\n5. 眼鏡\n\n{ASK}"
    assert (first.expected, last.expected) == ("1", "5")
    assert is_right("jcommonsenseqa", path, "傘を差すので、答えは1番です。", "1")
    assert not is_right("jcommonsenseqa", path, "答えは2です。", "1")


@pytest.mark.parametrize("header", ["", "question,A,B,C,D,answer\n", "Question,A,B,C,D,Answer\n"])
def test_jmmlu_with_and_without_a_header(header: str, tmp_path: Path) -> None:
    path = tmp_path / "physics.csv"
    path.write_text(
        header + '"光と音、速いのは？",光,音,同じ,場合による,A\n力の単位は？,ワット,ジュール,ニュートン,ボルト,C\n'
    )
    first, second = read("jmmlu", path)
    assert first.question.startswith("光と音、速いのは？\n\n1. 光\n2. 音\n3. 同じ\n4. 場合による\n\n")
    assert (first.expected, second.expected) == ("1", "3")
    assert [q.expected for q in read("jmmlu", path, "evaluation.questions=1")] == ["1"]


def test_gpqa_s_choices_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "gpqa.csv"
    wrong = ",".join(f"Incorrect Answer {i}" for i in (1, 2, 3))
    rows = "".join(f"{i},Which is {i}?,right {i},a {i},b {i},c {i}\n" for i in range(24))
    path.write_text(f"Record ID,Question,Correct Answer,{wrong}\n{rows}")
    found, again, other = (read("gpqa", path, f"evaluation.seed={seed}") for seed in (0, 0, 1))
    assert [q.question for q in found] == [q.question for q in again] != [q.question for q in other]
    for i, question in enumerate(found):
        assert f"\n{question.expected}. right {i}\n" in question.question
    assert {question.expected for question in found} == {"1", "2", "3", "4"}


def test_jemhopqa(tmp_path: Path) -> None:
    rows = [
        {"qid": "a", "type": "comparison", "question": "月も恒星ですか？", "answer": "NO", "time_dependent": False},
        {"qid": "b", "type": "compositional", "question": "徒然草の作者の生まれた国は？", "answer": "日本"},
    ]  # fmt: skip
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    found = read("jemhopqa", path)
    assert [question.expected for question in found] == ["NO", "日本"]
    assert is_right("jemhopqa", path, "月は衛星なので、NO です。", "NO") and is_right(
        "jemhopqa", path, "日本です。", "日本"
    )
    assert not is_right("jemhopqa", path, "YES", "NO") and not is_right("jemhopqa", path, "NOTHING", "NO")


@pytest.mark.parametrize("name", ["mgsm.jsonl", "mgsm.tsv"])
def test_mgsm_with_names_of_columns(name: str, tmp_path: Path) -> None:
    rows = [{"question": "りんごが3個、みかんが4個。合わせて何個？", "answer": "", "answer_number": 7},
            {"question": "1,200円の半分は？", "answer": "", "answer_number": 600}]  # fmt: skip
    as_tsv = "question\tanswer\tanswer_number\n" + "".join("\t".join(map(str, r.values())) + "\n" for r in rows)
    path = tmp_path / name
    path.write_text(as_tsv if name.endswith("tsv") else "".join(json.dumps(row) + "\n" for row in rows))
    assert [question.expected for question in read("mgsm-ja-hub", path)] == ["7", "600"]
    assert is_right("mgsm-ja-hub", path, "3+4で、7個です。", "7")


@pytest.mark.parametrize(
    ("label", "place"),
    [("A", 0), ("d", 3), (" B ", 1), ("0", 0), ("3", 3), ("3.0", 3), ("4", None), ("E", None), ("海", 2), ("", None)],
)
def test_what_a_label_means(label: str, place: int | None) -> None:
    assert place_of(label, ["山", "川", "海", "空"]) == place


def test_a_label_that_is_none_of_the_choices_is_named(tmp_path: Path) -> None:
    path = tmp_path / "physics.csv"
    path.write_text("力の単位は？,ワット,ジュール,ニュートン,ボルト,E\n")
    with pytest.raises(StageError, match="answer is 'E', which is none of the 4 choices") as error:
        read("jmmlu", path)
    assert error.value.where == "physics.csv:1" and "evaluation.choices" in error.value.cure


def test_a_choice_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "valid.json"
    path.write_text(json.dumps({"question": "何？", "label": 0, "choice0": "a", "choice1": "b"}) + "\n")
    with pytest.raises(StageError, match="choice2 is None, not text"):
        read("jcommonsenseqa", path)
