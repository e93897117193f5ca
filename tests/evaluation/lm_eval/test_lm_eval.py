"""lm-eval's tasks by the real harness, in an environment of its own, put to the tiny models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command import FinishedRun

pytestmark = pytest.mark.slow

GENERATED = """task: lengths
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
MEASURED = """task: units
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{[answer, '3です。']}}"
doc_to_target: 0
metric_list: [{metric: acc_norm, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="session")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that holds lm-eval and nothing of ftkit's."""
    folder = tmp_path_factory.mktemp("lm-eval")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "lm-eval==0.4.13"], check=True)
    return str(python)


@pytest.fixture
def project(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run, with two tasks on the same six questions."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"question": f"{n}メートルは何センチメートルですか？", "answer": f"{n}00センチメートルです。"}
        for n in range(2, 8)
    ]
    (tasks / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("lengths", GENERATED), ("units", MEASURED)):
        filled = text.replace("QUESTIONS", str(tasks / "questions.jsonl"))
        (tasks / f"{name}.yaml").write_text(filled, encoding="utf-8")
    return FinishedRun(tmp_path, finished_run.all)


def arguments(lm_eval: str, tasks: str = "[lengths,units]") -> list[str]:
    return [
        *("stage=evaluate", "evaluation.questions=2", "evaluation.lm_eval.include_path=tasks"),
        *(f"evaluation.lm_eval.tasks={tasks}", f"evaluation.lm_eval.python={lm_eval}"),
    ]


@pytest.mark.timeout(600)
def test_figures_of_its_tasks_are_everywhere_where_ftkits_own_are(project: FinishedRun, lm_eval: str) -> None:
    done = project.ftkit(*arguments(lm_eval))
    assert done.status == 0, done
    result = json.loads((project.outputs / "evaluate" / "record.json").read_text(encoding="utf-8"))["result"]
    figures = {figure["name"]: figure for figure in result["lm_eval"]["figures"]}
    generated = figures["lm_eval.lengths.exact_match"]
    kept = next((project.outputs / "evaluate").glob(".lm_eval.merged.lengths.generate-0.*.jsonl"))
    answers = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    right = [a["answer"]["output"] == f"{a['place'] + 2}00センチメートルです。" for a in answers]
    assert generated["merged"] == pytest.approx(sum(right) / 6) and generated["questions"] == 6
    assert all(a["answer"]["thinking"] for a in answers), "it thinks before it answers"
    assert generated["merged"] > 0, "what is judged is the final channel alone"
    assert set(figures) == {"lm_eval.lengths.exact_match", "lm_eval.units.acc_norm"}
    assert "lengths exact_match" in done.out
    assert 'id="lm-eval"' in (project.outputs / "evaluate" / "report.html").read_text(encoding="utf-8")
    card = (project.outputs / "merged" / "README.md").read_text(encoding="utf-8")
    assert f"| lengths | exact_match | {generated['base']:.3f} ±" in card
    assert "up to date" in project.ftkit(*arguments(lm_eval)).out
    again = project.ftkit(*arguments(lm_eval), "evaluation.adapter=true")
    assert all(f"{name}: {task}: " in again.out for name in ("base", "merged") for task in ("lengths", "units"))
    assert "adapter: lengths: " not in again.out and again.out.count("answered before") >= 4
    closed = project.ftkit("stage=register", *arguments(lm_eval)[1:], "evaluation.adapter=true",
                           'registration.gate=["lm_eval.lengths.exact_match > base + 1"]')  # fmt: skip
    assert closed.status == 1 and "the gate is closed: lm_eval.lengths.exact_match > base + 1" in closed.err


def test_a_task_that_is_unknown_or_fails_is_told_with_its_cure(project: FinishedRun, lm_eval: str) -> None:
    unknown = project.ftkit(*arguments(lm_eval, "[lenghts]"))
    assert unknown.status == 1 and "no task lenghts" in unknown.err and "did you mean lengths" in unknown.err
    (project.folder / "tasks" / "questions.jsonl").unlink()
    failed = project.ftkit(*arguments(lm_eval))
    assert failed.status == 1 and "lm-eval ended with status 1" in failed.err and "questions.jsonl" in failed.err
    assert "Traceback" not in failed.err and "lm_eval.log" in failed.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_command_that_started_it(project: FinishedRun, lm_eval: str, number: int) -> None:
    """Guard: the end of stdin in the worker, and ``Harness.__exit__``."""
    command = [sys.executable, "-m", "ftkit", "experiment=tiny", *arguments(lm_eval)]
    process = subprocess.Popen(command, cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (children := workers_of(process.pid)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(60)
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "lm-eval runs on"
        time.sleep(0.05)


def workers_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text() if alive(pid) else ""
    return [int(child) for child in listed.split() if "lm_eval/worker" in command_line(int(child))]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
