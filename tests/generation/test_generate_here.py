"""stage=generate with a model of this machine: killed and taken up again, up to date, drawn as asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.command import FinishedRun

from ftkit.evaluation.generation import Draw

DRAWN = ("generate.questions=12", "generate.samples=4", "generate.batch_size=8", "generate.max_new_tokens=60")


@pytest.fixture(scope="module")
def project(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("generate")
    shutil.copytree(finished_run.folder / "outputs", folder / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    return FinishedRun(folder, finished_run.all)


def verdicts(run: FinishedRun) -> list[dict[str, Any]]:
    lines = (run.outputs / "generate" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def generate(run: FinishedRun, *arguments: str):
    done = run.ftkit("stage=generate", *DRAWN, *arguments)
    assert done.status == 0, done
    return done


def test_the_merged_model_writes_rows_of_its_own(project: FinishedRun) -> None:
    done = generate(project)
    assert "12 questions, 4 answers each by the merged model of tiny" in done.out
    record = json.loads((project.outputs / "generate" / "record.json").read_text(encoding="utf-8"))
    merged = json.loads((project.outputs / "merge" / "record.json").read_text(encoding="utf-8"))
    assert record["inputs"]["merge"] == merged["fingerprint"] and record["result"]["answers"] == 48
    kept = [line for line in verdicts(project) if line["verdict"] == "kept"]
    assert kept and all(line["right"] for line in kept) and len(kept) == record["result"]["kept"]
    rows = (project.outputs / "generate" / "rows" / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(row)["generated"]["digest"] for row in rows} == {merged["result"]["digest"]}
    assert "up to date" in generate(project).out
    assert "up to date" in generate(project, "generate.batch_size=4").out
    other = generate(project, "generate.keep=1", "generate.questions=10")
    assert "40 of 40 answered before" in other.out
    planned = project.ftkit("stage=plan", *DRAWN)
    assert "4 × 12 questions of the training rows, 48 answers" in planned.out


@pytest.mark.slow
def test_killed_it_goes_on_with_the_rest_and_ends_as_if_it_had_not_been(project: FinishedRun) -> None:
    """kill -9 while it answers; what is drawn depends on seed, question and sample alone."""
    arguments = ["experiment=tiny", "stage=generate", *DRAWN, "generate.seed=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ftkit", *arguments],
        cwd=project.folder,
        env=os.environ.copy(),
        stdout=subprocess.DEVNULL,
    )
    folder, deadline = project.outputs / "generate", time.monotonic() + 120
    before = set(folder.glob(".answers.*.jsonl"))
    while not (new := set(folder.glob(".answers.*.jsonl")) - before) or new.pop().read_text().count("\n") < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    (kept,) = folder.glob(".answers.*.jsonl")
    with kept.open("a", encoding="utf-8") as stream:
        stream.write('{"asked": "3", "samp')
    assert not (folder / "record.json").exists()
    assert " of 48 answered before" in generate(project, "generate.seed=1").out
    resumed = verdicts(project)
    assert "answered before" not in generate(project, "generate.seed=1", "force=true").out
    assert verdicts(project) == resumed


def test_another_run_s_model_answers_and_one_that_is_gone_is_named(project: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(project.folder / "outputs" / "tiny", tmp_path / "outputs" / "teacher")
    shutil.copytree(project.folder / "outputs" / "tiny" / "prepare", tmp_path / "outputs" / "tiny" / "prepare")
    run = FinishedRun(tmp_path, project.all)
    few = ("generate.source=teacher", "generate.questions=2", "generate.samples=2")
    done = run.ftkit("stage=generate", *DRAWN, *few)
    assert done.status == 0 and "by the merged model of teacher" in done.out, done
    shutil.rmtree(tmp_path / "outputs" / "teacher" / "merged")
    gone = run.ftkit("stage=generate", *DRAWN, *few)
    assert gone.status == 1 and "run.name=teacher stage=merge" in gone.err
    mistyped = run.ftkit("stage=generate", *DRAWN, "generate.source=teachre")
    assert mistyped.status == 2 and "did you mean generate.source=teacher?" in mistyped.err


def test_without_a_merged_model_it_names_the_stages_that_make_one(ftkit: Any) -> None:
    done = ftkit("experiment=tiny", "stage=generate")
    assert done.status == 1 and "stage=prepare,publish,train,merge,generate" in done.err


def test_top_p_leaves_out_the_unlikely() -> None:
    import torch

    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    ids = torch.zeros(4000, 1, dtype=torch.long)
    drawn = Draw(1.0, range(4000), torch.device("cpu"), top_p=0.7)(ids, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03)
    whole = Draw(1.0, range(4000), torch.device("cpu"))(ids, scores).argmax(-1)
    assert torch.allclose(torch.bincount(whole, minlength=4) / 4000, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)
