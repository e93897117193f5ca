"""stage=generate with a teacher behind a server: what becomes a row, what does not, and a server that fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.teacher import Teacher, serving

from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, StageError
from ftkit.generation.teacher import pause_of
from ftkit.pipeline.runner import run

NUMBERS = range(10, 30)
RUN = Path("outputs/taught")


def question(n: int) -> str:
    return f"{n}+1を計算してください。"


def right(n: int) -> dict[str, str]:
    return {"reasoning": f"{n}に1をたします。{n}+1={n + 1}なので、答えは{n + 1}です。", "content": f"{n + 1}です。"}


def number_in(body: dict[str, Any]) -> int:
    return int(re.findall(r"(\d+)\+1", body["messages"][-1]["content"])[0])


def says_what_is_right(body: dict[str, Any]) -> dict[str, str]:
    return right(number_in(body))


@pytest.fixture
def project(in_empty_folder: Path) -> Path:
    """Prepared rows in an empty folder."""
    lines = [
        {"question": question(n), "answer": f"<think>{right(n)['reasoning']}</think>{n + 1}です。", "source": "school"}
        for n in NUMBERS
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (in_empty_folder / "rows.jsonl").write_text(text, encoding="utf-8")
    run(resolve(configured("stage=prepare")))
    return in_empty_folder


def configured(*overrides: str) -> list[str]:
    rows = ["dataset=sample", "dataset.path=rows.jsonl"]
    return ["experiment=tiny", "deployment.port=0", "run.name=taught", *rows, *overrides]


def generate(teacher: Teacher, *overrides: str) -> None:
    own = ["generate=teacher", f"generate.url={teacher.url}", "generate.model=teacher"]
    run(resolve(configured("stage=generate", *own, "generate.rewrite=null", *overrides)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result() -> dict[str, Any]:
    return json.loads((RUN / "generate" / "record.json").read_text(encoding="utf-8"))["result"]


def of_split(split: str) -> set[str]:
    rows = lines(RUN / "prepare" / "apto_reasoning_harmony.jsonl")
    return {row["messages"][1]["content"] for row in rows if row["split"] == split}


def test_right_answers_become_rows_and_wrong_ones_their_counterparts(project: Path, capsys: Any) -> None:
    def says(body: dict[str, Any]) -> dict[str, str]:
        n, kind = number_in(body), body["seed"]
        english = {"reasoning": f"Add 1 to {n}. {n}+1={n + 1}, so the answer is {n + 1}.", "content": f"{n + 1}です。"}
        wrong = {"reasoning": f"{n}に1をたして、{n}になります。", "content": f"{n}です。"}
        in_tags = {"content": f"<think>{right(n)['reasoning']}答えが出ました。よかったです。</think>{n + 1}です。"}
        return [right(n), wrong, english, in_tags, {"content": "<think>考え中"}, right(n)][kind]

    with serving(Teacher(says, finish=lambda body: "length" if body["seed"] == 4 else "stop")) as teacher:
        generate(teacher, "generate.samples=6", "generate.near_duplicates=1.0")
    train, heldout = of_split("train"), of_split("heldout")
    assert set(teacher.questions) == train and not train & heldout and heldout
    assert teacher.asked[0]["messages"][0]["content"].startswith("reasoning language: Japanese\n\nYou are an AI")
    count = len(train)
    assert result()["kept"] == 2 * count and result()["dropped"] == {
        "does not end": count,
        "is not right": count,
        "thinks in another language": count,
        "thinks like one that is kept": count,
    }
    kept = lines(RUN / "generate" / "rows" / "kept.jsonl")
    assert {row["question"] for row in kept} == train and kept[0]["source"] == "school"
    assert kept[0]["answer"].startswith("<think>") and kept[0]["generated"]["model"] == "teacher"
    assert {(row["generated"]["seed"], row["generated"]["sample"]) for row in kept} == {(0, 0), (0, 3)}
    pair = lines(RUN / "generate" / "pairs.jsonl")[0]
    assert pair["prompt"][-1]["content"] in train and pair["chosen"][0]["content"] != pair["rejected"][0]["content"]
    page = (RUN / "generate" / "report.html").read_text(encoding="utf-8")
    assert "thinks in another language" in page and "Add 1 to" in page
    out = capsys.readouterr().out
    assert "dataset.path=outputs/taught/generate/rows" in out and "thinks in another language" in out

    run(resolve(configured("stage=prepare", "run.name=again", "dataset.path=outputs/taught/generate/rows")))
    rows = lines(Path("outputs/again/prepare/apto_reasoning_harmony.jsonl"))
    by_split = {split: [r["messages"] for r in rows if r["split"] == split] for split in ("train", "heldout")}
    assert len(by_split["train"]) == 3 * count, "those kept, and the run's own"
    assert {messages[1]["content"] for messages in by_split["heldout"]} == heldout, "the same are held out again"
    assert {messages[0]["content"] for split in by_split.values() for messages in split} == {
        "reasoning language: Japanese\n\nYou are an AI chatbot with a lively and energetic personality."
    }


def test_a_server_that_fails_for_a_while_loses_nothing(project: Path, capsys: Any) -> None:
    failures = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"}), None, (429, {"Retry-After": "0"})]
    with serving(Teacher(says_what_is_right, failures=failures)) as teacher:
        generate(teacher, "generate.samples=1", "generate.concurrency=2")
    assert teacher.tried == len(teacher.asked) + 4 and result()["kept"] == len(of_split("train"))
    assert "asking again" in capsys.readouterr().out


def test_a_server_that_stays_down_is_given_up_and_the_rest_is_asked_later(project: Path, capsys: Any) -> None:
    teacher = Teacher(says_what_is_right)
    teacher.always = lambda body: len(teacher.asked) >= 5 and bool(teacher.failures.append((500, {})))
    with serving(teacher):
        with pytest.raises(StageError, match=r"does not answer: 500 \(not now\); patience of 0 s is over") as raised:
            generate(teacher, "generate.samples=1", "generate.patience_s=0", "generate.concurrency=1")
        assert "goes on with the rest" in raised.value.cure and len(teacher.asked) >= 5
        answered = list(teacher.questions)
        teacher.always, teacher.failures = (lambda body: False), []
        generate(teacher, "generate.samples=1", "generate.patience_s=0", "generate.concurrency=1")
        assert sorted(teacher.questions) == sorted(of_split("train")), "none is asked twice"
        assert f"{len(answered)} of {len(of_split('train'))} answered before" in capsys.readouterr().out
        generate(teacher, "generate.samples=1", "generate.keep=1", "generate.patience_s=0")
        assert len(teacher.questions) == len(of_split("train")), "other rules of keeping ask nothing"
    with pytest.raises(StageError, match="no connection"):
        generate(teacher, "generate.samples=2", "generate.patience_s=0")


def test_what_it_asks_to_wait_beyond_the_patience_is_not_waited_for(project: Path) -> None:
    busy = Teacher(says_what_is_right, failures=[(429, {"Retry-After": "3600"})] * 20)
    with serving(busy), pytest.raises(StageError, match="which asks to wait 3600 s"):
        generate(busy, "generate.samples=1", "generate.patience_s=60")


def test_a_request_that_is_refused_alone_does_not_end_the_rest(project: Path, capsys: Any) -> None:
    long = sorted(of_split("train"))[-1]
    teacher = Teacher(says_what_is_right)
    teacher.always = lambda body: body["messages"][-1]["content"] == long
    with serving(teacher):
        generate(teacher, "generate.samples=1", "generate.concurrency=1")
    assert result()["dropped"] == {"does not end": 1} and "the prompt is too long" in capsys.readouterr().out


def test_a_wrong_name_and_a_wrong_key_are_told_before_anything_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Teacher(says_what_is_right, models=("teachers",), key="secret")) as teacher:
        with pytest.raises(StageError, match="no model 'teacher'") as raised:
            generate(teacher)
        assert raised.value.cure == "generate.model=teachers" and not teacher.tried
        teacher.models = ("teacher",)
        monkeypatch.setenv("TEACHERS_KEY", "wrong")
        with pytest.raises(StageError, match=r"does not accept the key \(401: no such key\)") as raised:
            generate(teacher, "generate.api_key_env=TEACHERS_KEY")
        assert raised.value.cure == "the key in TEACHERS_KEY"
        monkeypatch.setenv("TEACHERS_KEY", "secret")
        generate(teacher, "generate.api_key_env=TEACHERS_KEY", "generate.samples=1")
    assert not any("secret" in path.read_text("utf-8", "replace") for path in RUN.rglob("*.json*"))


def test_english_thinking_is_written_anew(project: Path) -> None:
    def says(body: dict[str, Any]) -> dict[str, str]:
        n = number_in(body)
        if "Put into Japanese" in body["messages"][-1]["content"]:
            return {"reasoning": "The user wants Japanese.", "content": right(n)["reasoning"]}
        return {"reasoning": f"Add 1 to {n}: {n}+1={n + 1}.", "content": f"{n + 1}です。"}

    with serving(Teacher(says)) as teacher:
        generate(teacher, "generate.samples=1", "generate.rewrite='Put into Japanese: {thinking} ({question})'")
    kept = lines(RUN / "generate" / "rows" / "kept.jsonl")
    assert len(kept) == result()["rewritten"] == len(of_split("train")) and len(teacher.asked) == 2 * len(kept)
    assert all("たします" in row["answer"] and row["generated"]["rewritten"] for row in kept)
    assert lines(RUN / "generate" / "answers.jsonl")[0]["thinking_before"].startswith("Add 1 to")


def test_a_hint_is_in_what_is_asked_and_in_no_row(project: Path) -> None:
    with serving(Teacher(says_what_is_right)) as teacher:
        generate(teacher, "generate.samples=1", "generate.hint=日本語で考えてください。")
    assert all(asked.endswith("計算してください。日本語で考えてください。") for asked in teacher.questions)
    assert {row["question"] for row in lines(RUN / "generate" / "rows" / "kept.jsonl")} == of_split("train")


def test_other_questions_are_asked_but_for_held_out_ones_and_those_without_an_answer(project: Path) -> None:
    held = sorted(of_split("heldout"))[0]
    other = [
        *({"question": question(n), "answer": f"{n + 1}です。"} for n in (70, 71)),
        {"question": question(71), "answer": "72です。"},
        {"question": question(72)},
        {"question": question(73), "answer": ""},
        {"question": held.replace("+", "＋"), "answer": "1です。"},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in other)
    Path("other.jsonl").write_text(text, encoding="utf-8")
    with serving(Teacher(says_what_is_right)) as teacher:
        generate(teacher, "generate.samples=1", "generate.path=other.jsonl", "generate.replay=false")
    assert sorted(teacher.questions) == [question(70), question(71)]
    assert sum(result()["left_out"].values()) == 4
    assert result()["left_out"]["held out, or like a question that is"] == 1
    assert sorted(path.name for path in (RUN / "generate" / "rows").iterdir()) == ["kept.jsonl", "validation.jsonl"]


def test_where_nothing_is_kept_it_says_why(project: Path) -> None:
    clueless = Teacher(lambda body: {"reasoning": "わかりません。", "content": "さあ。"})
    with serving(clueless), pytest.raises(StageError, match=r"none of \d+ answers is kept: \d+ is not right"):
        generate(clueless)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["generate=teacher"], "generate.url"),
        (["generate=teacher", "generate.url=127.0.0.1:8000"], "generate.url"),
        (["generate=teacher", "generate.url=http://h/v1"], "generate.model"),
        (["generate.url=http://h/v1"], "generate.url"),
        (
            ["generate=teacher", "generate.url=http://h/v1", "generate.model=m", "generate.api_key_env=NOT_THERE"],
            "generate.api_key_env",
        ),
        (["generate.source=nobody"], "generate.source"),
        (["generate.temperature=0.0"], "generate.samples"),
        (["generate.rewrite=Translate!"], "generate.rewrite"),
        (["generate=rewrite", "generate.language=null"], "generate.language"),
        (["generate.path=nowhere.jsonl"], "generate.path"),
        (["generate.path=rows.jsonl", "evaluation.path=rows.jsonl"], "generate.path"),
        (["generate.path=rows.jsonl", "dataset.validation=rows.jsonl"], "generate.path"),
    ],
)
def test_what_cannot_work_is_told_before_anything_loads(overrides: list[str], key: str, in_empty_folder: Path) -> None:
    Path("rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        resolve(["experiment=tiny", "stage=plan", *overrides])
    assert key in [problem.key for problem in raised.value.problems]
    assert all(problem.cure for problem in raised.value.problems)


def test_both_forms_of_retry_after_are_understood() -> None:
    import httpx

    assert pause_of(httpx.Response(429, headers={"Retry-After": "7"})) == 7
    assert pause_of(httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
    assert pause_of(httpx.Response(429, headers={"Retry-After": "soon"})) is None
    assert pause_of(httpx.Response(429)) is None
