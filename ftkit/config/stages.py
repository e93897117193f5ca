"""The stages: what each does, where, what it needs, and which settings its outcome depends on.

``ftkit.stages`` holds a module for each, which does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ftkit.config.schema import Config

PROCESS = "process"
"""The place of work that happens in the process of the command, whatever the platform."""


@dataclass(frozen=True)
class Stage:
    """One step of the life cycle, or one beside it.

    Attributes:
        name: as ``stage=`` takes it.
        does: what it does, for the list of stages.
        makes: its product, for the plan.
        needs: stages whose records it reads.
        reads: dotted keys its outcome depends on; a leading ``-`` takes one out again.
        place: whose work it is: this process's, or that of the platform of ``compute`` or of ``deployment``.
        in_job: a platform that has jobs runs it in one; consecutive stages share a job.
        on_all_ranks: every one of the processes that torchrun started runs it, not rank 0 alone.
        starts_server: it starts what answers requests.
        extra: of ftkit's packages, that it needs in the process that runs it; empty for none.
        beside: not a step of ``stage=all``.
        always: runs each time it is asked for; nothing is kept that could be up to date.
        also: further stages that it needs with some configurations.
        unneeded: stages of ``needs`` that it does without with some.
        has_page: it leaves something to look at, which the start page lists.
    """

    name: str
    does: str
    makes: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    place: Literal["process", "compute", "deployment"] = PROCESS
    in_job: bool = False
    on_all_ranks: bool = False
    starts_server: bool = False
    extra: Callable[[Config], str] = lambda config: ""
    beside: bool = False
    always: bool = False
    has_page: bool = False
    also: Callable[[Config], tuple[str, ...]] = lambda config: ()
    unneeded: Callable[[Config], tuple[str, ...]] = lambda config: ()

    def needed(self, config: Config) -> tuple[str, ...]:
        """Stages whose records it reads with a configuration."""
        return (*self.also(config), *(name for name in self.needs if name not in self.unneeded(config)))

    def place_of(self, config: Config) -> str:
        """Where its work happens: ``process``, or the name of a platform."""
        if self.place == PROCESS or config.job.records:
            return PROCESS
        if self.place == "deployment":
            return config.deployment.platform
        compute = config.compute
        return compute.platform if compute.elsewhere or self.runs_as_job(config) else "local"

    def runs_as_job(self, config: Config) -> bool:
        """Whether a job of ``compute``'s platform runs it."""
        return self.in_job and config.compute.has_jobs and not config.job.records


STAGES = (
    Stage(
        "environment",
        "check what is installed, or make the images on Azure",
        "{environment}",
        place="compute",
        always=True,
    ),
    Stage(
        "prepare",
        "rows to Harmony conversations and tokens",
        "{asset}.parquet, .jsonl",
        reads=(
            *("dataset", "-dataset.overlength", "-dataset.num_proc"),
            *("model.tokenizer", "model.pretrained_model_name_or_path", "model.revision"),
        ),
        has_page=True,
    ),
    Stage(
        "publish",
        "register the data as a versioned asset",
        "data asset {asset}",
        ("prepare",),
        ("dataset.asset_name",),
        place="compute",
    ),
    Stage(
        "train",
        "fine-tuning (TRL, PEFT, accelerate)",
        "{trained}",
        ("publish",),
        (
            *("model", "lora", "method", "job.start", "sft", "dataset.overlength"),
            *("compute.nodes", "compute.gpus_per_node"),
            *("-model.tokenizer", "-model.license", "-sft.logging_steps", "-sft.save_steps"),
            *("-sft.save_total_limit", "-sft.verify_packing", "-sft.save_minutes"),
        ),
        place="compute",
        in_job=True,
        on_all_ranks=True,
        extra=lambda config: "train",
        has_page=True,
    ),
    Stage(
        "merge",
        "merge the adapter into the base, check the result",
        "{merged}",
        ("train", "publish"),
        ("merge", "model", "-model.tokenizer"),
        place="compute",
        in_job=True,
        extra=lambda config: "train",
    ),
    Stage(
        "evaluate",
        "ask base and merged model, compare their answers in a page",
        "evaluate/report.html",
        ("train", "merge", "publish"),
        (
            "evaluation",
            "job.replaced",
            "job.replaced_revision",
            "-evaluation.lm_eval.python",
            "model",
            "-model.tokenizer",
            "-model.license",
        ),
        place="compute",
        in_job=True,
        extra=lambda config: "train",
        beside=True,
        has_page=True,
    ),
    Stage(
        "register",
        "register the merged model as a version",
        "model {model}",
        ("merge",),
        ("registration",),
        place="compute",
    ),
    Stage(
        "deploy",
        "serve the registered model at an endpoint",
        "endpoint {endpoint}",
        ("register",),
        ("deployment", "-deployment.rollout", "-deployment.keep_failed", "-deployment.startup_timeout_s"),
        place="deployment",
        starts_server=True,
        unneeded=lambda config: ("register",) if config.deployment.adapters else (),
    ),
    Stage(
        "invoke",
        "send a request to the endpoint, print the answer",
        "answer",
        ("deploy",),
        place="deployment",
        always=True,
    ),
    Stage("plan", "what would run, memory, every problem; runs nothing", "this table", beside=True, always=True),
    Stage(
        "generate",
        "have a model answer questions, keep what is right as rows",
        "generate/rows",
        ("prepare",),
        (
            *("generate", "model", "-model.tokenizer", "-model.license", "-generate.batch_size"),
            *("-generate.concurrency", "-generate.timeout_s", "-generate.patience_s", "-generate.api_key_env"),
        ),
        extra=lambda config: "serve" if config.generate.source == "url" else "train",
        beside=True,
        has_page=True,
        also=lambda config: ("merge",) if config.generate.source == "merged" else (),
    ),
    Stage(
        "report",
        "compare runs in a page: settings, curves, figures",
        "_report/report.html",
        beside=True,
        always=True,
        has_page=True,
    ),
    Stage(
        "chat",
        "talk with the deployed model in the terminal",
        "answers",
        ("deploy",),
        place="deployment",
        beside=True,
        always=True,
    ),
    Stage("clean", "list what takes disk space, remove what is asked for", "free space", beside=True, always=True),
    Stage(
        "teardown",
        "stop the endpoint and jobs under way, after asking",
        "nothing",
        place="deployment",
        beside=True,
        always=True,
    ),
)
"""In the order in which they run."""

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}
LIFE_CYCLE = tuple(stage.name for stage in STAGES if not stage.beside)
"""What ``stage=all`` runs."""

STAGE_WORDS = (*LIFE_CYCLE, *(stage.name for stage in STAGES if stage.beside), "all")
"""What ``stage=`` takes."""


def life_cycle(*, with_evaluate: bool) -> tuple[str, ...]:
    """What ``stage=all`` runs; with evaluate before register, whose gate and card take its figures."""
    return tuple(name for name in BY_NAME if name in LIFE_CYCLE or (with_evaluate and name == "evaluate"))
