"""What sbatch is given: options, and a script with the user's setup and one line that starts ftkit on every node."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ftkit.config.compute import SlurmCompute
from ftkit.config.schema import Config
from ftkit.platforms.base import JobRequest

OWN_JOB = "FTKIT_JOB"
"""Environment variable by which a process knows the job that it belongs to."""
SAVING_S = 120
"""Seconds before the end of its time at which a job is told to save."""
MEETING = '"$(hostname):$((29500 + SLURM_JOB_ID % 1000))"'
"""Where the processes of several nodes meet: the first node, which runs the script. Jobs that share it take different
ports."""


def batch_script(config: Config, request: JobRequest, *, name: str, given: Path, runs: Path, ended: Path) -> str:
    """The script.

    Args:
        config: the whole configuration.
        request: what the job is to do.
        name: of the job.
        given: folder with the frozen configuration and the records of the stages before.
        runs: takes the place of ``run.outputs``.
        ended: file for its exit status.
    """
    compute = config.compute
    assert isinstance(compute, SlurmCompute)
    variables = {**compute.environment_variables, "PYTHONUNBUFFERED": "1", OWN_JOB: name}
    lines = [
        "#!/bin/bash",
        *(f"export {variable}={shlex.quote(value)}" for variable, value in variables.items()),
        *([compute.setup] if compute.setup else []),
        f"{_srun(compute)} {_python(compute, _nodes(compute, request))} {_arguments(request, given, runs)}",
        "status=$?",
        f"echo $status > {shlex.quote(str(ended))}",
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def sbatch_options(config: Config, request: JobRequest, name: str, log: Path) -> list[str]:
    """What is asked of Slurm; a file's name holds patterns behind ``%``."""
    compute = config.compute
    assert isinstance(compute, SlurmCompute)
    given = {
        "job-name": name,
        "output": str(log).replace("%", "%%"),
        "open-mode": "append",
        "nodes": _nodes(compute, request),
        "ntasks-per-node": 1,
        "cpus-per-task": _cores(compute),
        "gpus-per-node": compute.gpus_per_node if compute.gib_per_gpu else None,
        "time": max(1, round(compute.time_hours * 60)),
        "signal": f"TERM@{SAVING_S}",
        "partition": compute.partition,
        "account": compute.account,
    }
    return [*(f"--{option}={value}" for option, value in given.items() if value is not None), *compute.sbatch]


def _nodes(compute: SlurmCompute, request: JobRequest) -> int:
    return compute.nodes if "train" in request.stages else 1


def _cores(compute: SlurmCompute) -> int | None:
    return compute.cpus_per_gpu and compute.cpus_per_gpu * compute.gpus_per_node


def _srun(compute: SlurmCompute) -> str:
    """One task on each node; srun does not take over the job's --cpus-per-task by itself."""
    cores = _cores(compute)
    return "srun --kill-on-bad-exit=1" + (f" --cpus-per-task={cores}" if cores else "")


def _python(compute: SlurmCompute, nodes: int) -> str:
    """What starts ``-m ftkit``: on one node ftkit starts a process for each GPU by itself."""
    python = shlex.quote(sys.executable)
    if nodes == 1:
        return python
    torchrun = f"-m torch.distributed.run --nnodes={nodes} --nproc-per-node={compute.gpus_per_node}"
    return f"{python} {torchrun} --rdzv-backend=c10d --rdzv-endpoint={MEETING}"


def _arguments(request: JobRequest, given: Path, runs: Path) -> str:
    changes = {
        "run.outputs": str(runs),
        "job.records": str(given),
        "job.data": str(Path(request.records["publish"].result["path"]).resolve()),
        "job.earlier": request.earlier,
    }
    return shlex.join(
        [
            *("-m", "ftkit", "--resolved", str(given / "config.yaml"), f"stage={','.join(request.stages)}"),
            *(f"{key}={_in_hydras_grammar(value)}" for key, value in changes.items() if value),
        ]
    )


def _in_hydras_grammar(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
