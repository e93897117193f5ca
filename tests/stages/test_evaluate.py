"""stage=evaluate on a file of questions: drawn with seeds, killed and taken up again, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from helpers.command import FinishedRun, on_terminal
from rich.cells import cell_len

DRAWN = (
    *("evaluation.temperature=2.0", "evaluation.samples=3", "evaluation.batch_size=4"),
    "evaluation.max_new_tokens=60",
)
TIMES = ("seconds",)


@pytest.fixture(scope="module")
def project(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A copy of the finished run beside 12 questions of MGSM's form."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(finished_run.folder / "outputs", folder / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    lines = [f"{n}メートルは何センチメートルですか？\t{n}00\n" for n in range(2, 14)]
    (folder / "mgsm_ja.tsv").write_text("".join(lines), encoding="utf-8")
    return FinishedRun(folder, finished_run.all)


def answers(run: FinishedRun) -> list[dict]:
    """Without times."""
    lines = (run.outputs / "evaluate" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for model in row.keys() & {"base", "adapter", "merged"}:
            row[model] = {key: value for key, value in row[model].items() if key not in TIMES}
    return rows


QUESTIONS = ("stage=evaluate", "evaluation=mgsm-ja", "evaluation.max_new_tokens=60")


def evaluate(run: FinishedRun, *arguments: str):
    done = run.ftkit(*QUESTIONS, *arguments)
    assert done.status == 0, done.err
    return done


def test_a_file_of_questions_is_a_task(project: FinishedRun) -> None:
    done = evaluate(project)
    record = json.loads((project.outputs / "evaluate" / "record.json").read_text(encoding="utf-8"))
    assert "12 questions of mgsm-ja" in done.out and record["result"]["task"] == "mgsm-ja"
    rows = answers(project)
    assert len(rows) == 12 and all(row["merged"]["thinks_in_japanese"] for row in rows)
    assert record["result"]["merged"]["right"] == sum(row["merged"]["right"] for row in rows) / 12
    assert record["result"]["losses"] == {"base": {}, "merged": {}}
    assert "right number" not in done.out, "it is the same as right here"
    task = project.folder / "mgsm_ja.tsv"
    task.write_text(task.read_text(encoding="utf-8").replace("\t200\n", "\t7\n"), encoding="utf-8")
    again = evaluate(project)
    assert "12 of 12 answered before" in again.out, "another expected answer needs no new one"
    assert next(row for row in answers(project) if row["row"] == 1)["merged"]["right"] is False


def test_the_unmerged_adapter_is_asked_as_well(project: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 merging changes no answer, and the adapter's are not the base's; the widest table fits 80 columns."""
    evaluate(project)
    monkeypatch.chdir(project.folder)
    shown = on_terminal("experiment=tiny", *QUESTIONS, "evaluation.adapter=true", columns=80)
    assert all(f"{name}: 12 of 12 answered before" in shown for name in ("base", "merged"))
    assert "adapter: 12 of 12" not in shown
    (table,) = re.findall(r"^.* before  .*\n(?:.+\n)+?(?= +question)", shown, re.MULTILINE)
    assert "before  adapter  after" in table and "right answer" in table and "…" not in table
    assert max(map(cell_len, table.splitlines())) <= 80
    rows = answers(project)
    told = [
        [{k: row[name][k] for k in ("thinking", "output")} for row in rows] for name in ("base", "adapter", "merged")
    ]
    assert told[1] == told[2] != told[0]
    result = json.loads((project.outputs / "evaluate" / "record.json").read_text(encoding="utf-8"))["result"]
    assert result["adapter"] == result["merged"] and set(result["merging"].values()) == {0}
    asked = ("evaluation=mgsm-ja", "evaluation.max_new_tokens=60", "evaluation.adapter=true")
    gate = 'registration.gate=["thinks_in_japanese >= adapter", "tokens < adapter - 5"]'
    refused = project.ftkit("stage=register", *asked, gate)
    assert refused.status == 1 and "the gate is closed: tokens < adapter - 5: the merged model has" in refused.err
    assert f", the adapter has {result['adapter']['tokens']:.2f}" in refused.err


def test_asked_once_more_without_the_language_line(project: FinishedRun) -> None:
    """Answers with it are kept; figures of those without it stand in the listing, the page, the record, the card."""
    evaluate(project)
    done = evaluate(project, "evaluation.without_language_line=true")
    assert done.out.count("12 of 12 answered before") == 2
    (listed,) = re.findall(
        r"^ +without the language line .*\n +(thinks in Japanese .*)\n +(right answer .*)$", done.out, re.M
    )
    result = json.loads((project.outputs / "evaluate" / "record.json").read_text(encoding="utf-8"))["result"]
    untold = result["without_language_line"]
    for line, name in zip(listed, ("thinks_in_japanese", "right"), strict=True):
        assert f"{untold['base'][name]:.2f}" in line and f"{untold['merged'][name]:.2f}" in line
    rows = [row for row in answers(project) if row.get("without_language_line")]
    assert len(rows) == 12 and untold["questions"] == 12
    assert untold["merged"]["thinks_in_japanese"] == sum(row["merged"]["thinks_in_japanese"] for row in rows) / 12
    page = (project.outputs / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "Without the language line" in page
    card = (project.outputs / "merged" / "README.md").read_text(encoding="utf-8")
    assert f"thinks in Japanese in {untold['merged']['thinks_in_japanese']:.2f} of the answers" in card


def test_a_chain_is_compared_with_the_run_before_or_with_where_it_began(project: FinishedRun) -> None:
    evaluate(project)
    before = answers(project)
    chain = ("run.name=second", "method.start=tiny", "sft.max_steps=1", "sft.eval_strategy=no")
    assert project.ftkit("stage=prepare,publish,train,merge", *chain).status == 0
    second = replace(project, name="second")
    for base, theirs in (("start", "merged"), ("model", "base")):
        evaluate(project, *chain, f"evaluation.base={base}")
        assert [row["base"] for row in answers(second)] == [row[theirs] for row in before]
    page = (second.outputs / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "put to <code>package:tiny-gpt-oss</code> (base)" in page


@pytest.mark.slow
def test_killed_it_goes_on_with_the_rest_and_ends_as_if_it_had_not_been(project: FinishedRun) -> None:
    """kill -9 while it answers; drawn answers are the same by their seed, whatever was answered before."""
    command = [sys.executable, "-m", "ftkit", "experiment=tiny", "stage=evaluate", "evaluation=mgsm-ja", *DRAWN]
    process = subprocess.Popen(command, cwd=project.folder, env=os.environ.copy(), stdout=subprocess.DEVNULL)
    folder, deadline = project.outputs / "evaluate", time.monotonic() + 60
    before = set(folder.glob(".base.*.jsonl"))
    while not (new := set(folder.glob(".base.*.jsonl")) - before) or new.pop().read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    (kept,) = folder.glob(".base.*.jsonl")
    with kept.open("a", encoding="utf-8") as stream:
        stream.write('{"row": 3, "samp')
    assert not (folder / "record.json").exists()
    resumed = evaluate(project, *DRAWN)
    assert "base: " in resumed.out and " of 36 answered before" in resumed.out
    of_resumed = answers(project)
    whole = evaluate(project, *DRAWN, "force=true")
    assert "answered before" not in whole.out
    assert answers(project) == of_resumed and len(of_resumed) == 36
    drawn = {}
    for row in of_resumed:
        drawn.setdefault(row["row"], set()).add(row["base"]["thinking"])
    assert any(len(thoughts) > 1 for thoughts in drawn.values()), "samples differ"
