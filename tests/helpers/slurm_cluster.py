"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, from Debian's slurm-wlm."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from helpers.needs import not_installed

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
READY_S = 60
CONF = """
ClusterName=ftkit
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_min_interval=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=train Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=long Nodes=n1 MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster() -> Iterator[Path]:
    """The path of its slurm.conf, for ``SLURM_CONF``.

    Where Slurm is not installed the test is left out, but not in CI; where its daemons may not run, in CI as well.
    """
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        not_installed(f"no {', '.join(missing)} on the PATH", "apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path has to be short
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, ports=_free_ports(3)))
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    key, log, seed = (f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "seed"))
    munged = ["munged", "--foreground", "--force", key, log, seed, f"--socket={folder}/munge.socket"]
    with ExitStack() as daemons:
        daemons.callback(shutil.rmtree, folder, ignore_errors=True)
        commands = {
            "munged": [*munged, f"--pid-file={folder}/munged.pid"],
            "slurmctld": ["slurmctld", "-D"],
            "n1": ["slurmd", "-D", "-N", "n1"],
            "n2": ["slurmd", "-D", "-N", "n2"],
        }
        for name, command in commands.items():
            daemons.enter_context(_daemon(command, folder / f"{name}.log", os.environ | {"SLURM_CONF": str(conf)}))
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: _idle(conf) == 2, folder)
        yield conf


@contextmanager
def _daemon(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            yield
        finally:
            process.terminate()


def _idle(conf: Path) -> int:
    command = ["sinfo", "--noheader", "--Node", "--partition=train", "--states=idle", "--format=%n"]
    done = subprocess.run(command, env=os.environ | {"SLURM_CONF": str(conf)}, capture_output=True, text=True)
    return len(done.stdout.split())


def _wait(ready, folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-500:] for path in folder.glob("*.log"))
            pytest.skip(f"Slurm's daemons do not start on this machine:\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
