"""The typed configuration as a whole, and those of its parts that ``conf/config.yaml`` itself gives values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ftkit.config.compute import AzureCompute, Compute
from ftkit.config.dataset import Dataset
from ftkit.config.fields import AssetName, Fraction, Group, HubName, Name, PositiveInt, TagKey, TagValue
from ftkit.config.generation import Generate
from ftkit.config.groups import Deployment, Evaluation, Lora, Model, Sft
from ftkit.config.methods import Method
from ftkit.config.stages import BY_NAME, life_cycle

Tracker = Literal["tensorboard", "mlflow", "trackio", "wandb"]


class Run(Group):
    name: Name
    """Name of the run; its files lie in ``<outputs>/<name>/``. A sweep appends the swept overrides."""
    outputs: str
    """Folder that holds all runs."""
    base: Name | None
    """Run whose records stand in for stages that this run has not made itself; a sweep sets it."""


class Job(Group):
    """What ftkit sets for itself, and no user: the overrides of a run, and a job's folders inside that job."""

    overrides: list[str] | None = None
    """The overrides that the run was started with, for the report."""
    records: str | None = None
    """Folder with the records of the stages before; set inside a job, and nowhere else."""
    data: str | None = None
    """Folder where the published rows are mounted."""
    model: str | None = None
    """Folder where the model is mounted."""
    evaluation: str | None = None
    """Folder where the file of questions, or lm-eval's tasks, are mounted."""
    start: str | None = None
    """Digest of the merged model of the run that method.start names."""
    replaced: str | None = None
    """Name or path of the model that it stands in for."""
    replaced_revision: str | None = None
    """That model's revision."""
    earlier: str | None = None
    """Run folder of an earlier job, which this one resumes."""


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
    in bfloat16: a third of bf16's size. Rounding alone takes back most of what experts' adapters have learnt."""
    calibration_steps: Annotated[int, Field(ge=0)]
    """Steps in which what stays in bfloat16 learns what rounding to MXFP4 has lost, where that keeps less than keep;
    0 takes none. A GPU needs a minute or two for them with 20 billion parameters."""
    keep: Fraction
    """Least share of what training changed in the logits of held-out rows that mxfp4 must keep; below it nothing is
    written."""
    gguf: str | None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it: merge writes merged.gguf beside merged/ with it,
    unrounded. null writes none. For merges on this machine."""


class Registration(Group):
    model_name: AssetName
    """Name under which versions of the merged model are kept."""
    type: Literal["custom_model"]
    """Azure ML's asset type."""
    gate: list[str]
    """Rules that evaluate's figures must keep before register: thinks_in_japanese >= 0.95, right >= base."""
    hub: HubName | None
    """Repository of the model hub, owner/name, that register pushes to as well, with HF_TOKEN; null pushes nothing."""
    hub_parts: list[Literal["model", "adapter", "data"]]
    """What is pushed: model, with its card, to registration.hub; adapter and data to owner/name-adapter and -data."""
    hub_private: bool
    """true makes the repositories private, and pushes to no public one."""


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


class Clean(Group):
    """What stage=clean removes; with none of these it lists what is there."""

    runs: list[str] | None
    """Names of runs to remove."""
    checkpoints: bool
    """true removes the checkpoints of all trainings that are finished."""
    versions: list[str] | Literal["unused"] | None
    """Registered versions on this machine to remove, [tiny-01-pre:1]; unused takes all that no run needs."""


class Config(Group):
    """The whole resolved configuration, as every stage gets it."""

    stage: str | list[str] | None
    """Stages to run: one, a list, or all."""
    force: bool
    """true runs a stage again even when nothing it depends on has changed."""
    yes: bool
    """true agrees to what clean and teardown ask, and to deploy's replacing another run's live version."""
    check: bool
    """true lets plan ask Azure ML for credential, workspace, VM sizes, quota and prices, or Slurm for its partition."""
    language: Literal["en", "ja"] | None
    """Of what is printed; null goes by LC_ALL, LC_MESSAGES or LANG, and is English where these name another one."""
    attach: str | None
    """Name of an Azure ML job under way, to follow instead of submitting a new one."""
    tracking: Tracker | Literal["auto", "none"] | list[Tracker]
    """Who gets metrics besides metrics.jsonl: one, a list, none; auto is TensorBoard, and MLflow if its URI is set."""
    tags: dict[TagKey, TagValue]
    """Tags of all that is made in Azure, beside ftkit's own: {cost-center: a17}."""
    run: Run
    workspace: Workspace
    environment: Environment
    secrets: Secrets
    model: Model
    dataset: Dataset
    lora: Lora | None
    """null (lora=none) trains all weights but the router's."""
    method: Method
    sft: Sft
    compute: Compute
    merge: Merge
    registration: Registration
    deployment: Deployment
    invoke: Invoke
    evaluation: Evaluation
    generate: Generate
    report: Report
    clean: Clean
    job: Job = Job()

    _from_environment: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def from_environment(self) -> Mapping[str, Any]:
        """For each dotted key whose value comes from environment variables, the text that names them."""
        return self._from_environment

    @model_validator(mode="after")
    def _model_is_read_where_a_job_mounts_it(self) -> Self:
        self.model._folder = self.job.model
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages asked for, in the order of the life cycle; empty when none is."""
        asked = [self.stage] if isinstance(self.stage, str) else list(self.stage or [])
        names = dict.fromkeys(name for word in asked for name in (self.life_cycle if word == "all" else (word,)))
        order = [*BY_NAME]
        return tuple(sorted(names, key=lambda name: order.index(name) if name in order else len(order)))

    @property
    def life_cycle(self) -> tuple[str, ...]:
        """What ``stage=all`` runs: with evaluate if ``registration.gate`` or ``evaluation.guard`` asks for figures."""
        return life_cycle(with_evaluate=self.is_gated)

    @property
    def is_gated(self) -> bool:
        """Whether register looks at figures of evaluate."""
        return bool(self.registration.gate or self.evaluation.guard.path)

    @property
    def generates(self) -> bool:
        """Whether any key of ``generate`` was given, on the command line or by an experiment."""
        named = any(text.lstrip("+").startswith("generate") for text in self.job.overrides or ())
        return named or self.generate.path is not None or self.generate.source != "merged"

    @property
    def compared_with(self) -> Model:
        """What evaluate calls the base: the model that training started from, or that the chain of runs began with."""
        if self.evaluation.base == "start" or self.job.replaced is None:
            return self.model
        began = {"pretrained_model_name_or_path": self.job.replaced, "revision": self.job.replaced_revision}
        return self.model.model_copy(update={**began, "folder": None})

    @property
    def azure_compute(self) -> AzureCompute:
        """``compute``, for code that runs only where it is Azure ML's."""
        assert isinstance(self.compute, AzureCompute)
        return self.compute

    @property
    def platforms(self) -> tuple[str, ...]:
        """Those of ``compute`` and of ``deployment``, each once."""
        return tuple(dict.fromkeys((self.compute.platform, self.deployment.platform)))

    @property
    def tracking_words(self) -> set[str]:
        """The words of ``tracking``."""
        return {self.tracking} if isinstance(self.tracking, str) else set(self.tracking)

    @property
    def processes(self) -> int:
        """Training processes: nodes × GPUs on each."""
        return self.compute.nodes * self.compute.gpus_per_node

    @property
    def rows_per_step(self) -> int:
        """Rows whose gradients make one optimiser step."""
        return self.processes * self.sft.rows_at_a_time * self.sft.gradient_accumulation_steps
