"""compute=slurm against a real Slurm of two nodes: jobs, what becomes of them, and what Slurm refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.command import Command, read_until, run_ftkit
from helpers.slurm_cluster import cluster

from ftkit.reports.runs import read

pytestmark = pytest.mark.slow

OUTPUTS = "own runs, it's"
SLURM = (
    *("experiment=tiny", "compute=slurm", "compute.gib_per_gpu=null", "compute.cpus_per_gpu=1", "deployment.port=0"),
    *("sft.max_steps=12", "sft.save_steps=2", "sft.eval_strategy=no", r"run.outputs='own runs, it\'s'"),
)
Ftkit = Callable[..., Command]


@pytest.fixture(scope="module")
def conf() -> Iterator[Path]:
    with cluster() as conf:
        yield conf


@pytest.fixture(scope="module")
def folder(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rows have been published."""
    folder = tmp_path_factory.mktemp("slurm")
    done = run_ftkit(*SLURM, "stage=prepare,publish", cwd=folder)
    assert done.status == 0, done
    return folder


@pytest.fixture
def ftkit(conf: Path, folder: Path) -> Ftkit:
    return lambda *arguments, **more: run_ftkit(*SLURM, *arguments, cwd=folder, SLURM_CONF=str(conf), **more)


def record(folder: Path, stage: str) -> dict:
    return json.loads((folder / OUTPUTS / "tiny" / stage / "record.json").read_text(encoding="utf-8"))


def process_of_the_job(folder: Path) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0] == sys.executable and "--resolved" in words and str(folder) in " ".join(words):
            return process
    raise AssertionError("no process of the job runs")


def test_a_job_that_was_cancelled_goes_on_from_its_last_checkpoint_and_its_model_is_registered(
    ftkit: Ftkit, conf: Path, folder: Path
) -> None:
    """Ctrl-C leaves the job; teardown finds and cancels it; the same command does the rest, once."""
    command = [sys.executable, "-m", "ftkit", *SLURM, "stage=train,merge,register"]
    environment = os.environ | {"SLURM_CONF": str(conf)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    following = subprocess.Popen(command, cwd=folder, env=environment, **streams)
    read_until(following, "step  2/12")
    process_of_the_job(folder).suspend()  # else it may be done before it is cancelled, which continues it
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[1]
    assert following.returncode == 130 and "goes on; the same command follows it again" in said

    stopped = ftkit("stage=teardown", "yes=true")
    assert stopped.status == 0 and "train, merge, running" in stopped.out and "stopped job tiny-" in stopped.out
    done = ftkit("stage=train,merge,register")
    assert done.status == 0, done
    assert "resum" in done.out or "goes on from" in done.out, done
    trained, merged = record(folder, "train"), record(folder, "merge")
    assert trained["result"]["global_step"] == 12 and trained["place"] == merged["place"]
    assert Path(trained["place"], trained["result"]["folder"]).is_dir() and "model tiny-01-pre:1" in done.out
    assert (folder / OUTPUTS / "tiny" / "train" / "loss.png").is_file()

    training = read(folder / OUTPUTS / "tiny")
    assert training is not None and training.where.startswith("Slurm, 1 × 1 process, job tiny-")

    again = ftkit("stage=train,merge,register")
    assert again.out.count("up to date") == 3, again
    assert "nothing of run tiny is running" in ftkit("stage=teardown").out


def test_a_job_that_somebody_cancels_while_it_is_followed_is_told_to_be_cancelled(conf: Path, folder: Path) -> None:
    """Guard: the last line of status_of. Its script outlives SIGTERM, and ends seconds after its exit status."""
    slow = """compute.setup='trap : TERM; trap "sleep 4" EXIT'"""
    lasting = ("run.name=cancelled", "run.base=tiny", "sft.max_steps=90", slow)
    command = [sys.executable, "-m", "ftkit", *SLURM, *lasting, "stage=train"]
    environment = os.environ | {"SLURM_CONF": str(conf)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    following = subprocess.Popen(command, cwd=folder, env=environment, **streams)
    submitted = re.search(r"job (\S+) is submitted", read_until(following, "step  2/90"))
    assert submitted
    subprocess.run(["scancel", f"--name={submitted[1]}"], env=environment, check=True)
    said = following.communicate(timeout=120)[1]
    assert following.returncode == 1 and f"job {submitted[1]} (train) was cancelled" in said, said
    assert "the same command submits it again and goes on from its last checkpoint" in said


def test_two_nodes_train_together_by_one_command(ftkit: Ftkit, folder: Path) -> None:
    two = ("compute.nodes=2", "sft.max_steps=2", "sft.per_device_train_batch_size=8", "run.name=two", "run.base=tiny")
    done = ftkit("stage=train", *two)
    assert done.status == 0, done
    assert done.out.count("step 2/2") == 1, "rank 0 alone prints"
    kept = json.loads((folder / OUTPUTS / "two" / "train" / "record.json").read_text(encoding="utf-8"))
    assert kept["result"]["global_step"] == 2 and kept["settings"]["compute.nodes"] == 2


def test_a_job_that_fails_says_why(ftkit: Ftkit) -> None:
    failed = ftkit("stage=train", "run.name=failing", "run.base=tiny", "sft.learning_rate=1e30", "sft.max_grad_norm=0")
    assert failed.status == 1 and "Traceback" not in failed.err
    assert "failed: " in failed.err and "not a number" in failed.err and ".log" in failed.err, failed


def test_what_slurm_refuses_is_said_in_its_words(ftkit: Ftkit) -> None:
    planned = ftkit("stage=plan", "check=true", "compute.partition=trian")
    assert planned.status == 1 and "compute.partition=train" in planned.out, planned
    refused = ftkit("stage=train", "run.name=refused", "run.base=tiny", "compute.partition=trian")
    assert refused.status == 1 and "Slurm refused to submit a job: " in refused.err, refused
    assert "partition" in refused.err and "stage=plan check=true" in refused.err
    assert "slurm  1 node" in ftkit("stage=plan", "check=true").out


def test_without_slurm_it_is_said_before_anything_starts(ftkit: Ftkit, tmp_path: Path) -> None:
    refused = ftkit("stage=train", "force=true", PATH=str(tmp_path))
    assert refused.status == 1 and "there is no sbatch, squeue, scancel, sinfo on this machine" in refused.err, refused
    assert "compute=local" in refused.err
