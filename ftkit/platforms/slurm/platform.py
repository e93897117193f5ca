"""A Slurm cluster: it runs jobs, which see the files of this machine; all other work is the local platform's."""

from __future__ import annotations

import os
from pathlib import Path

from ftkit.config.compute import SlurmCompute
from ftkit.config.schema import Config
from ftkit.errors import StageError, nearest
from ftkit.platforms.base import Finding, JobRequest, Running, Say
from ftkit.platforms.slurm import jobs, scheduler
from ftkit.platforms.slurm.script import OWN_JOB


class Slurm:
    """See ``ftkit.platforms.base.JobPlatform``.

    Raises:
        StageError: Slurm's commands are not on this machine.
    """

    def __init__(self, config: Config, run_folder: Path):
        scheduler.check_installed()
        self._config, self._run_folder = config, run_folder

    def preflight(self) -> list[Finding]:
        compute = self._config.compute
        assert isinstance(compute, SlurmCompute)
        try:
            found = scheduler.partitions()
        except StageError as error:
            return [Finding("cluster", "wrong", error.what, error.cure)]
        names = sorted({partition.name for partition in found})
        wanted = compute.partition or next((p.name for p in found if p.default), "")
        there = [partition for partition in found if partition.name == wanted]
        if not there:
            close = nearest(wanted, names)
            cure = f"compute.partition={close or (names or ['…'])[0]}"
            return [Finding("partition", "wrong", f"no {wanted or 'default'}; there are {', '.join(names)}", cure)]
        nodes = sum(partition.nodes for partition in there)
        said = f"{wanted}: {nodes} nodes, {', '.join(sorted({p.gres for p in there}))}"
        if nodes < compute.nodes:
            return [Finding("partition", "wrong", said, f"compute.nodes={nodes}, or another compute.partition")]
        if compute.gib_per_gpu and not any("gpu" in partition.gres for partition in there):
            return [Finding("partition", "wrong", f"{said}: no GPUs", "compute.gib_per_gpu=null asks for none")]
        return [Finding("partition", "ok", said)]

    def run_job(self, request: JobRequest, say: Say, show: Say) -> jobs.Job:
        return jobs.run(self._config, self._run_folder, request, say, show)

    def running(self) -> list[Running]:
        if (found := jobs.under_way(self._run_folder)) is None:
            return []
        job, seen = found
        price = self._config.compute.usd_per_hour
        cost = None if price is None else price * self._config.compute.nodes
        what = f"job {job.name}: {', '.join(job.stages)}, {seen.state.lower()} (Slurm's {seen.number})"
        return [Running(what, cost, lambda: jobs.cancel(job, seen.number))]

    @staticmethod
    def own_job() -> str:
        return os.environ.get(OWN_JOB, "")


PLATFORM = Slurm
