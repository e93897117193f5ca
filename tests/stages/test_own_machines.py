"""Several machines of one's own train together, started by the line that plan prints."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys

import pytest
from helpers.command import FinishedRun

NODES = ("sft.max_steps=2", "sft.eval_strategy=no", "sft.per_device_train_batch_size=8", "compute.nodes=2")


def test_plan_says_how_processes_are_started(ftkit):
    one = ftkit("experiment=tiny", "stage=plan", "deployment.port=0", "compute.gpus_per_node=4").out
    assert "stage=train starts 4 processes, one a GPU, by torchrun" in one
    refused = ftkit("experiment=tiny", "stage=train", "compute.nodes=2")
    assert refused.status == 2 and "stage=plan prints the torchrun line" in refused.err


@pytest.mark.slow
def test_two_machines_train_together_as_plan_says(copied_run: FinishedRun):
    """Guard: rank 0 alone prints, and leaves the record."""
    planned = copied_run.ftkit("stage=plan", *NODES).out
    (line,) = (line.split("   on each of")[0] for line in planned.splitlines() if "torchrun" in line)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torchrun, *words = shlex.split(line.removeprefix("start").replace("HOST:29500", f"127.0.0.1:{port}"))
    assert torchrun == "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen(command, cwd=copied_run.folder, env=os.environ.copy(), **streams) for _ in range(2)]
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sorted(out.count("step 2/2") for out in said) == [0, 1], said
    record = json.loads((copied_run.outputs / "train" / "record.json").read_text(encoding="utf-8"))
    assert record["result"]["global_step"] == 2 and record["settings"]["compute.nodes"] == 2
