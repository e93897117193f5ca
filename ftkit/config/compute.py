"""The group ``compute``: the machines that train, one model for each platform."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ftkit.config.fields import SHM_SIZE, AssetName, Group, PositiveInt, SbatchOption, SbatchWord


class Processes(Group):
    """What training needs to know of any machine."""

    label: ClassVar[str]
    """The platform's name in what users read."""
    option: ClassVar[str]
    """An option of ``compute`` that is on it."""
    has_jobs: ClassVar[bool] = False
    """Whether training, merging and evaluating are jobs that the platform runs."""
    elsewhere: ClassVar[bool] = False
    """Whether its jobs see neither the files nor the environment of this machine, and run in images."""
    nodes: PositiveInt
    """Machines (the NUM_NODES of other kits)."""
    gpus_per_node: PositiveInt
    """Processes per node, one per GPU (CPU processes if there are none)."""
    gib_per_gpu: Annotated[float, Field(gt=0)] | None
    """Memory of one GPU in GiB; plan compares its prediction with it. null: there is no GPU."""
    usd_per_hour: Annotated[float, Field(ge=0)] | None
    """Price of one node for an hour; plan and records calculate costs with it."""
    environment_variables: dict[str, str]
    """Set for the training processes, PYTORCH_CUDA_ALLOC_CONF for instance. Never put a secret here."""

    @property
    def machines(self) -> str:
        """What a job runs on, for the plan."""
        return ""


class LocalCompute(Processes):
    """This machine."""

    label: ClassVar[str] = "this machine"
    option: ClassVar[str] = "local"
    platform: Literal["local"]
    """local: this machine."""


class AzureCompute(Processes):
    """Jobs on Azure ML."""

    label: ClassVar[str] = "Azure ML"
    option: ClassVar[str] = "h100x1"
    has_jobs: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = True
    platform: Literal["azureml"]
    """azureml: a job on Azure ML."""
    instance_type: str | None
    """VM size, Standard_NC40ads_H100_v5 for instance."""
    cluster: str | None
    """Compute cluster of the workspace; null takes serverless compute of instance_type."""
    spot: bool
    """true takes spot machines: cheaper, and an evicted job resumes from its last checkpoint."""
    timeout_hours: Annotated[float, Field(gt=0)]
    """Hours after which Azure ML ends the job."""
    shm_size: Annotated[str, Field(pattern=SHM_SIZE)]
    """Shared memory of the job's containers."""
    queue_hours: Annotated[float, Field(gt=0)]
    """Hours that a command waits for a job to leave the queue; then it ends, and the job stays in it."""
    identity_client_id: str | None
    """Client id of a user-assigned identity whose rights jobs have; null: the compute's own, where they need one."""
    experiment_name: AssetName
    """Azure ML experiment that jobs are listed under."""
    sweep: Literal["launcher", "native"]
    """What runs a sweep on Azure ML. launcher: hydra/launcher=azureml, a job for each combination. native: one sweep
    job, which ends a trial early if its loss is worse than the median of the others."""
    max_concurrent_trials: PositiveInt
    """Trials of a native sweep that run at a time."""

    @property
    def machines(self) -> str:
        return f"{self.nodes} × {self.instance_type}"


class SlurmCompute(Processes):
    """Jobs on a Slurm cluster whose machines share the folder of the runs."""

    label: ClassVar[str] = "Slurm"
    option: ClassVar[str] = "slurm"
    has_jobs: ClassVar[bool] = True
    platform: Literal["slurm"]
    """slurm: a job on the cluster that sbatch submits to."""
    partition: SbatchWord | None
    """Partition that jobs go to; null takes the cluster's default."""
    account: SbatchWord | None
    """Account that jobs are charged to; null takes the user's default."""
    cpus_per_gpu: PositiveInt | None
    """Cores for each training process; null leaves them to Slurm, whose own default is one."""
    time_hours: Annotated[float, Field(gt=0)]
    """Hours after which Slurm ends the job; two minutes before, training saves."""
    sbatch: list[SbatchOption]
    """Further options of sbatch: ["--constraint=h100", "--qos=long"]."""
    setup: str | None
    """Shell commands that come before ftkit's in the job's script: module load cuda/12.8. Jobs have the environment
    variables and the Python of the command that submits them."""

    @property
    def machines(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        gpus = f" × {self.gpus_per_node} GPU{'s' if self.gpus_per_node > 1 else ''}"
        return nodes + gpus if self.gib_per_gpu else nodes


Compute = Annotated[LocalCompute | AzureCompute | SlurmCompute, Field(discriminator="platform")]
COMPUTES: dict[str, type[LocalCompute] | type[AzureCompute] | type[SlurmCompute]] = {
    "local": LocalCompute,
    "azureml": AzureCompute,
    "slurm": SlurmCompute,
}


def label_of(platform: str) -> str:
    """A platform's name in what users read."""
    return COMPUTES[platform].label if platform in COMPUTES else platform
