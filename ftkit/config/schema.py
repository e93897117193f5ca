"""The typed configuration as a whole, and those of its parts that ``conf/config.yaml`` itself gives values."""

from __future__ import annotations

from typing import Literal

from ftkit.config.fields import AssetName, Group, Name, PositiveInt
from ftkit.config.groups import Compute, Dataset, Deployment, Evaluation, Lora, Model, Sft

Tracker = Literal["tensorboard", "mlflow", "trackio"]

STAGES = ("environment", "prepare", "publish", "train", "merge", "register", "deploy", "invoke")
"""The life cycle in order."""

EVALUATED = (*STAGES[: STAGES.index("register")], "evaluate", *STAGES[STAGES.index("register") :])
"""The same with evaluate: before the model is registered, whose gate and card take its figures."""

SIDE_STAGES = ("plan", "evaluate", "report", "teardown")
"""Stages that are run on their own, beside the life cycle."""


class Run(Group):
    name: Name
    """Name of the run; its files lie in ``<outputs>/<name>/``. A sweep appends the swept overrides."""
    outputs: str
    """Folder that holds all runs."""
    base: Name | None
    """Run whose records stand in for stages that this run has not made itself; a sweep sets it."""
    records: str | None
    """Set inside an Azure ML job: folder with the records of the stages before it."""
    overrides: list[str] | None
    """Set by ftkit: the overrides that the run was started with, for the report."""
    earlier: str | None
    """Set inside an Azure ML job: where the run folder of an earlier job is mounted."""


class Workspace(Group):
    """The Azure ML workspace; by default from SUBSCRIPTION_ID, RESOURCE_GROUP and WORKSPACE_NAME."""

    subscription_id: str | None
    """Subscription that holds the workspace."""
    resource_group: str | None
    """Resource group that holds the workspace."""
    workspace_name: str | None
    """Name of the workspace."""


class Environment(Group):
    train: AssetName
    """Name of the environment whose image jobs run in; its version is a digest of its files."""
    serve: AssetName
    """Name of the environment whose image endpoints run in."""
    wait: bool
    """true follows the build of the images to its end; false lets the first job or deployment wait for it."""


class Secrets(Group):
    """Where a job finds the token of the model hub; the token itself is in no configuration, job or log."""

    key_vault: str | None
    """Name of the key vault; null takes the workspace's own."""
    hf_token: str | None
    """Name of the secret in it; null loads from the hub without a token."""
    hf_connection: str | None
    """Name of a connection of the workspace that holds the token instead."""


class Merge(Group):
    format: Literal["bf16", "fp32", "mxfp4"]
    """What the merged model's files hold. mxfp4: experts in 4 bits as the published checkpoints have them, the rest
    in bfloat16: a third of bf16's size, and the rounding takes away a part of what training changed."""
    gguf: str | None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it: merge writes merged.gguf beside merged/ with it,
    unrounded. null writes none. For merges on this machine."""


class Registration(Group):
    model_name: AssetName
    """Name under which versions of the merged model are kept."""
    type: Literal["custom_model"]
    """Azure ML's asset type."""


class Invoke(Group):
    prompt: str | None
    """A question; the system message of the training is put before it."""
    messages: list[dict[str, str]] | None
    """A whole chat: items with role and content."""
    file: str | None
    """A JSON file with the whole request body."""
    max_new_tokens: PositiveInt
    """Longest answer in tokens, thinking included."""
    model: str | None
    """Name of one of deployment.adapters, or of the model itself; null asks the model."""
    stream: bool | None
    """true prints thinking and answer as they come, false when all is there; null streams to a terminal."""


class Report(Group):
    runs: list[str] | None
    """Names of the runs to compare; null takes all that lie in run.outputs, sweeps included."""


class Config(Group):
    """The whole resolved configuration, as every stage gets it."""

    stage: str | list[str] | None
    """Stages to run: one, a list, or all."""
    force: bool
    """true runs a stage again even when nothing it depends on has changed."""
    yes: bool
    """true answers the question that teardown asks."""
    check: bool
    """true lets plan ask Azure: credential, workspace, VM sizes, quota, prices."""
    attach: str | None
    """Name of an Azure ML job under way, to follow instead of submitting a new one."""
    tracking: Tracker | Literal["auto", "none"] | list[Tracker]
    """Who gets metrics besides metrics.jsonl: one, a list, none; auto is TensorBoard, and MLflow if its URI is set."""
    run: Run
    workspace: Workspace
    environment: Environment
    secrets: Secrets
    model: Model
    dataset: Dataset
    lora: Lora | None
    """null (lora=none) trains all weights but the router's."""
    sft: Sft
    compute: Compute
    merge: Merge
    registration: Registration
    deployment: Deployment
    invoke: Invoke
    evaluation: Evaluation
    report: Report

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages asked for, in the order of the life cycle; empty when none is."""
        asked = [self.stage] if isinstance(self.stage, str) else list(self.stage or [])
        names = dict.fromkeys(name for word in asked for name in (self.life_cycle if word == "all" else (word,)))
        order = (*EVALUATED, *SIDE_STAGES)
        return tuple(sorted(names, key=lambda name: order.index(name) if name in order else len(order)))

    @property
    def life_cycle(self) -> tuple[str, ...]:
        """What ``stage=all`` runs: evaluate is among it where ``deployment.gate`` asks for figures."""
        return EVALUATED if self.deployment.gate else STAGES

    @property
    def trackers(self) -> set[str]:
        """The words of ``tracking``."""
        return {self.tracking} if isinstance(self.tracking, str) else set(self.tracking)

    @property
    def processes(self) -> int:
        """Training processes: nodes × GPUs on each."""
        return self.compute.nodes * self.compute.gpus_per_node

    @property
    def rows_per_step(self) -> int:
        """Rows whose gradients make one optimiser step."""
        return self.processes * self.sft.per_device_train_batch_size * self.sft.gradient_accumulation_steps
