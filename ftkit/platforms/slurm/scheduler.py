"""Slurm's commands: submit a script, ask how a job is, cancel it, list partitions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import StageError

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")
LIMIT_S = 60
"""Seconds that a command of Slurm's may take."""
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_FED")
ENDED = {
    "COMPLETED": "Completed",
    "CANCELLED": "Canceled",
    **dict.fromkeys(
        ("BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"), "Failed"
    ),
}
"""Slurm's states of a job that runs no more, in the words of ``ftkit.records``."""


@dataclass(frozen=True)
class Seen:
    """A job as the scheduler has it.

    Attributes:
        number: Slurm's job id.
        state: Slurm's word, ``RUNNING``.
        why: it waits, in Slurm's words: ``Resources``.
    """

    number: str
    state: str
    why: str


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        name: of it.
        default: whether jobs go there that name none.
        nodes: in it that are up.
        gres: of such a node, ``gpu:h100:8``; ``(null)`` for none.
    """

    name: str
    default: bool
    nodes: int
    gres: str


def check_installed() -> None:
    """Raises StageError: a command of Slurm's is not on this machine."""
    if missing := [command for command in COMMANDS if not shutil.which(command)]:
        cure = "run ftkit on a machine of the cluster that submits jobs, or compute=local"
        raise StageError(f"compute=slurm, and there is no {', '.join(missing)} on this machine", cure=cure)


def submit(script: Path, options: Sequence[str]) -> str:
    """Submit a script with options of sbatch's; returns Slurm's number of the job.

    Raises:
        StageError: Slurm refuses it, in its own words.
    """
    said = _asked("submit a job", "sbatch", "--parsable", *options, str(script))
    return said.strip().partition(";")[0]


def find(name: str) -> Seen | None:
    """The user's own job of a name that Slurm still knows of: the one submitted last; None if there is none.

    Raises:
        StageError: Slurm does not answer.
    """
    own = ("squeue", "--me", "--noheader", "--states=all")
    said = _asked("look for a job", *own, f"--name={name}", "--format=%i|%T|%r")
    seen = [Seen(*line.split("|", 2)) for line in said.splitlines() if line.count("|") == 2]
    return max(seen, key=lambda job: int(job.number.partition("_")[0]), default=None)


def cancel(number: str) -> None:
    """Cancel a job; SIGTERM comes first, by which training saves.

    Raises:
        StageError: Slurm refuses it.
    """
    _asked("cancel the job", "scancel", number)


def partitions() -> list[Partition]:
    """Those of the cluster.

    Raises:
        StageError: Slurm does not answer.
    """
    said = _asked("list the partitions", "sinfo", "--noheader", "--responding", "--format=%P|%D|%G")
    found = (line.strip().split("|") for line in said.splitlines() if line.count("|") == 2)
    return [Partition(name.rstrip("*"), name.endswith("*"), int(nodes), gres) for name, nodes, gres in found]


def _asked(what: str, *command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StageError(
            f"Slurm did not answer {command[0]} within {LIMIT_S} s", cure="the same command asks it again"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: ").removeprefix("error: ")
        raise StageError(f"Slurm refused to {what}: {said}", cure="stage=plan check=true shows its partitions")
    return done.stdout
