"""Ctrl-C, kill -9, a full disk: nothing half-written is taken for whole, and the same command goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.command import FinishedRun, read_until
from helpers.processes import running_below

from ftkit.training.checkpoints import MARKER, step_of

TINY = ("experiment=tiny", "deployment.port=0")
QUICK = "sft.eval_strategy=no"
"""Else a short training looks at its held-out rows after each step."""


@pytest.fixture
def prepared(finished_run: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run's files, in a folder of the test's own."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs")
    return FinishedRun(tmp_path, finished_run.all)


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "ftkit", *TINY, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ.copy(), **streams, **options)


def sealed(outputs: Path) -> set[Path]:
    return {marker.parent for marker in outputs.glob(f"**/checkpoint-*/{MARKER}")}


def test_a_killed_training_goes_on_from_its_last_checkpoint_and_says_so(prepared: FinishedRun):
    short = ("stage=train", "sft.max_steps=12", "sft.save_steps=4", "sft.per_device_train_batch_size=4", QUICK)
    others = sealed(prepared.outputs)
    process = start(prepared.folder, *short)
    read_until(process, "step  9/12")  # the checkpoint of step 8 is begun, so that of step 4 is whole
    process.kill()
    process.wait()
    last = max(step_of(checkpoint) for checkpoint in sealed(prepared.outputs) - others)
    assert last in (4, 8)
    assert not (prepared.outputs / "train" / "record.json").exists()
    again = prepared.ftkit(*short)
    assert again.status == 0, again.err
    assert f"resuming from step {last} of 12" in again.out
    record = json.loads((prepared.outputs / "train" / "record.json").read_text(encoding="utf-8"))
    assert record["result"]["global_step"] == 12 and record["result"]["resumed_from"] == last


def test_ctrl_c_within_a_callback_is_not_lost():
    """Guards: pthread_kill and cancel in keeping_ctrl_c. Python drops what a callback raises, and would wait on."""
    script = """
import signal, threading, weakref
from ftkit.processes import keeping_ctrl_c

def dropped():
    thing = threading.Thread()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing

try:
    with keeping_ctrl_c():
        dropped()
        threading.Event().wait(60)
except KeyboardInterrupt:
    print("interrupted")
with keeping_ctrl_c():
    dropped()
for timer in threading.enumerate()[1:]:
    timer.join()
print("and not again")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\nand not again\n", "")


@pytest.mark.parametrize(
    ("stage", "trigger"),
    [
        ("prepare", "run  tiny"),
        ("train", "step 2/"),
        ("merge", "run  tiny"),
        ("deploy", "starting tiny"),
        ("evaluate", "run  tiny"),
    ],
)
def test_ctrl_c_ends_a_stage_in_one_line_and_the_same_command_completes(
    prepared: FinishedRun, stage: str, trigger: str
):
    short = {
        "train": ["lora.r=2", "sft.max_steps=6", "sft.per_device_train_batch_size=4", QUICK],
        "evaluate": ["evaluation.questions=8"],
    }
    arguments = (f"stage={stage}", "force=true", *short.get(stage, []))
    for _ in range(5):  # on a busy machine a stage can be over before the signal comes
        process = start(prepared.folder, *arguments)
        out = read_until(process, trigger)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        if not (prepared.outputs / stage / "record.json").exists():
            break
    assert process.returncode == 130, out + rest
    assert "Traceback" not in rest and "error  " in rest
    assert not (prepared.outputs / stage / "record.json").exists()
    try:
        assert prepared.ftkit(*arguments).status == 0
    finally:
        prepared.ftkit("stage=teardown", "yes=true")


def test_a_disk_that_fills_up_is_reported_and_leaves_nothing_half_written(prepared: FinishedRun):
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    shutil.rmtree(prepared.outputs / "merged")
    process = start(prepared.folder, "stage=merge", "force=true", preexec_fn=limit_files)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "no file may grow beyond 0.1 MiB here (ulimit -f)" in out and "merged" in out and "Traceback" not in out
    assert not (prepared.outputs / "merged").exists()
    assert not [path for path in prepared.outputs.iterdir() if "partial" in path.name]


def test_a_sweep_leaves_its_runs_side_by_side(prepared: FinishedRun):
    done = prepared.ftkit(
        "stage=train", "lora.r=4,8,16", "sft.max_steps=2", "sft.per_device_train_batch_size=4", QUICK, "-m"
    )
    assert done.status == 0, done.err
    for rank in (4, 8, 16):
        folder = prepared.folder / "outputs" / f"tiny-lora.r={rank}" / "train"
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == rank
        assert (folder / "record.json").is_file()


def test_a_sweep_two_at_a_time_goes_on_when_one_run_fails_and_says_so(prepared: FinishedRun):
    (prepared.folder / "outputs" / "tiny-lora.r=4").write_text("in the way")
    done = prepared.ftkit("stage=train", "lora.r=2,4", "sft.max_steps=1", "hydra/launcher=parallel", "-m")
    assert done.status == 1 and "Traceback" not in done.err
    (step,) = [line for line in done.out.splitlines() if "step 1/1" in line]
    assert step.startswith("lora.r=2  "), "which run's line it is"
    assert (prepared.folder / "outputs" / "tiny-lora.r=2" / "train" / "record.json").is_file()


def test_two_processes_train_together_and_one_that_crashes_as_it_ends_fails_nothing(
    prepared: FinishedRun, tmp_path: Path
):
    """Guard: end_now in training.worker."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif 'TORCHELASTIC_RUN_ID' in os.environ: atexit.register(os.abort)"
    )
    two = ("compute.gpus_per_node=2", "sft.max_steps=2", "sft.per_device_train_batch_size=8", QUICK)
    done = prepared.ftkit("stage=train", *two, PYTHONPATH=str(tmp_path))
    assert done.status == 0, str(done)
    assert done.out.count("step 2/2") == 1
    assert "2 × CPU" in done.out


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below a command, not torchrun's own."""
    launchers = running_below(psutil.Process(process.pid), "torch.distributed.run")
    return [p for p in running_below(psutil.Process(process.pid), "ftkit.training.worker") if p not in launchers]


@pytest.mark.parametrize("who", ["command", "one worker", "all workers"])
def test_sigterm_saves_on_every_rank_and_ends_with_143(prepared: FinishedRun, who: str):
    """Guards: passing_on_sigterm in processes, and the status that a worker reports, in platforms.local_processes."""
    two = ("stage=train", "compute.gpus_per_node=2", "sft.max_steps=30", "sft.per_device_train_batch_size=8")
    process = start(prepared.folder, *two, QUICK)
    out = read_until(process, "step  2/30")
    workers = workers_of(process)
    assert len(workers) == 2
    for one in {"command": [process], "one worker": workers[1:], "all workers": workers}[who]:
        one.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 143, out + rest
    assert "stopped after step" in rest and "Traceback" not in rest
    assert not any(worker.is_running() for worker in workers)
    step = rest.partition("stopped after step ")[2].split()[0]
    (saved,) = (prepared.outputs / "checkpoints").glob(f"*/checkpoint-{step}/complete.json")
    assert {p.name for p in saved.parent.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_an_error_in_one_of_two_processes_is_told_in_words(prepared: FinishedRun):
    done = prepared.ftkit("stage=train", "compute.gpus_per_node=2", "sft.max_length=50", "dataset.overlength=error")
    assert done.status == 1 and "sft.max_length" in done.err and "Traceback" not in done.err
