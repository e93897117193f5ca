"""Questions from a file: read in any form, asked as the training asked; what cannot be used is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import FinishedRun
from helpers.prepared import prepare_rows

from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.errors import ConfigError, StageError
from ftkit.evaluation.matching import MATCHES
from ftkit.evaluation.questions import Question, heldout_questions, in_words, task_file, task_questions, trained_on
from ftkit.models.loading import load_tokenizer

PAIRS = [('ロジャーは"5個"の玉を持っています。', "11"), ("12メートルは何センチメートルですか？", "1,200")]


def configured(*overrides: str) -> Config:
    return resolve(["experiment=tiny", "stage=plan", *overrides])


def read(*overrides: str) -> list[Question]:
    config = configured(*overrides)
    path = task_file(config.evaluation, None)
    assert path is not None
    return task_questions(path, config, load_tokenizer(config.model))


@pytest.mark.parametrize(
    ("name", "write", "overrides"),
    [
        ("q.tsv", lambda: "".join(f"{q}\t{a}\n" for q, a in PAIRS), ["evaluation=mgsm-ja"]),
        ("q.tsv", lambda: "question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in PAIRS), []),
        ("q.jsonl", lambda: "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS), []),
        ("q.json", lambda: json.dumps([{"q": q, "a": a} for q, a in PAIRS]),
         ["evaluation.columns.question=q", "evaluation.columns.answer=a"]),
        ("q.jsonl.gz", lambda: "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS), []),
    ],
    ids=["tsv without a header", "tsv", "jsonl", "json with other names", "gz"],
)  # fmt: skip
def test_questions_are_read(name: str, write: Callable[[], str], overrides: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(write().encode()) if name.endswith(".gz") else write().encode())
    found = read(*overrides, f"evaluation.path={path}")
    assert [(question.question, question.expected) for question in found] == PAIRS


@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")], ids=["as published", "through Excel"])
def test_a_file_as_mgsm_s_is_read_and_judged_as_it_lies_here(end: str, mark: str, in_empty_folder: Path) -> None:
    """No header, a number for an answer, commas in thousands, quotation marks as they are, no end to the last line."""
    lines = [
        "りんごが１箱に8個あります。15箱では何個ですか？\t120",
        '店主は"特売"と書いて、1個350円の品を1,200個売りました。売り上げは何円ですか？\t420,000',
        "気温が2度から5度下がりました。何度ですか？\t-3",
        "3人で5.25リットルを等しく分けると、1人何リットルですか？\t1.75",
    ]
    (in_empty_folder / "mgsm_ja.tsv").write_bytes((mark + end.join(lines)).encode())
    found = read("evaluation=mgsm-ja")
    assert [question.question for question in found] == [line.partition("\t")[0] for line in lines]
    assert [question.expected for question in found] == ["120", "420,000", "-3", "1.75"]
    match = MATCHES[configured("evaluation=mgsm-ja").evaluation.match]
    right = ["8×15=120なので、120個です。", "売り上げは４２０，０００円です。", "答え: -3度", "1.750リットル"]
    assert all(match(said, question.expected) for said, question in zip(right, found, strict=True))
    wrong = ["15箱で12個です。", "420円です。", "3度です。", "分かりません。"]
    assert not any(match(said, question.expected) for said, question in zip(wrong, found, strict=True))
    assert found[1].question in load_tokenizer(configured().model).decode(found[1].prompt)


def test_a_number_is_an_answer_and_only_so_many_are_read(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "1+1", "answer": 2}\n{"question": "1+2", "answer": 3.5}\n{"bad')
    found = read(f"evaluation.path={tmp_path}/q.jsonl", "evaluation.questions=2")
    assert [question.expected for question in found] == ["2", "3.5"]


def test_a_question_of_a_file_is_put_as_training_puts_it(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = finished_run.outputs / "prepare"
    held_out = heldout_questions(folder / "apto_reasoning_harmony.parquet", folder / "tokens.parquet", 3)
    rows = [{"question": question.question, "answer": question.expected} for question in held_out]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(f"evaluation.path={tmp_path}/q.jsonl")
    assert [question.prompt for question in found] == [question.prompt for question in held_out]


@pytest.mark.parametrize(
    ("text", "said", "cure"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": " ", "answer": "b"}\n', "q.jsonl:2", "mend or remove"),
        ('{"question": "a", "answer": "b"}\n{"question": "a"\n', "q.jsonl:2", "mend or remove"),
        ('{"question": "a", "answer": null}\n', "answer is None, not text", "mend or remove"),
        ('{"frage": "a", "antwort": "b"}\n', "no column 'question'", "evaluation.columns.question="),
        ("", "the file is empty", "evaluation.path="),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str, cure: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(StageError) as error:
        read(f"evaluation.path={tmp_path}/q.jsonl")
    assert said in f"{error.value.what} {error.value.where}" and cure in error.value.cure


def test_mistakes_of_the_configuration_are_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mgsm_ja.tsv").write_text("a\tb\n")
    with pytest.raises(ConfigError) as error:
        resolve(
            ["experiment=tiny", "stage=evaluate", f"evaluation.path={tmp_path}/mgsm-ja.tsv", "evaluation.samples=4"]
        )
    problems = {problem.key: problem for problem in error.value.problems}
    assert problems.keys() == {"evaluation.path", "evaluation.samples"}
    assert problems["evaluation.path"].cure == f"did you mean evaluation.path={tmp_path}/mgsm_ja.tsv?"
    assert "evaluation.temperature=1.0" in problems["evaluation.samples"].cure


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "43 held-out questions"),
        (("evaluation.path=folder/rows.jsonl",), "43 questions of rows.jsonl"),
        (("evaluation.path=rows.jsonl", "evaluation.name=exam"), "43 questions of exam"),
        (("evaluation=mgsm-ja",), "43 questions of mgsm-ja"),
    ],
)
def test_only_held_out_questions_are_called_so(overrides: tuple[str, ...], said: str, in_empty_folder: Path) -> None:
    for name in ("folder/rows.jsonl", "rows.jsonl", "mgsm_ja.tsv"):
        (in_empty_folder / name).parent.mkdir(exist_ok=True)
        (in_empty_folder / name).touch()
    assert in_words(43, configured(*overrides).evaluation) == said


def test_questions_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """Those of training rows alone, and whatever their width and white space."""
    chats = {1: ["6×7は？"], 2: ["東京は？", "大阪は？"], 3: ["京都は？"]}
    rows = [
        {"row": row, "messages": [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]}
        for row, texts in chats.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    split = [{"row": 1, "split": "train"}, {"row": 2, "split": "train"}, {"row": 3, "split": "heldout"}]
    pq.write_table(pa.Table.from_pylist(split), tmp_path / "tokens.parquet")
    asked = [Question(n, [], text, "") for n, text in enumerate(["６×７は？ ", "大阪は？", "京都は？", "神戸は？"])]
    assert trained_on(asked, tmp_path / "rows.parquet", tmp_path / "tokens.parquet") == 2


def test_of_a_held_out_chat_with_tools_the_last_trained_turn_is_asked_for(tmp_path):
    """A turn of weight 0 at the end is not what the prompt asks for; a call is expected in words."""
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "東京"}'}}
    chats = [
        [
            {"role": "user", "content": f"{i}の天気は？"},
            {"role": "assistant", "thinking": "調べる。", "tool_calls": [call]},
            {"role": "tool", "name": "weather", "content": "晴れ"},
            {"role": "assistant", "thinking": "雨。", "content": "雨です。", "weight": 0},
        ]
        for i in ("東京駅前", "大阪城公園")
    ]
    settings = ("dataset.heldout=0.5", "dataset.near_duplicates=1")
    made = prepare_rows([{"messages": chat} for chat in chats], tmp_path, "messages", *settings)
    (asked,) = heldout_questions(made.folder / "reasoning_harmony.parquet", made.folder / "tokens.parquet", 5)
    assert asked.question.endswith("の天気は？") and asked.expected == 'weather({"city": "東京"})'
