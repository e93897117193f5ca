"""The stages: what each does and needs, and which settings its outcome depends on. One module a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit.config.places import place_of
from ftkit.config.schema import Config
from ftkit.platforms import Platform, platform_of
from ftkit.records import Record, flat


@dataclass(frozen=True)
class Stage:
    """One step of the life cycle.

    Attributes:
        name: as ``stage=`` takes it.
        does: what it does, for the list of stages.
        makes: its product, for the plan.
        needs: stages whose records it reads.
        reads: dotted keys its outcome depends on; a leading ``-`` takes one out again.
        always: runs each time it is asked for; nothing is kept that could be up to date.
    """

    name: str
    does: str
    makes: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    always: bool = False


STAGES = (
    Stage("environment", "check what is installed, or make the images on Azure", "table of versions", always=True),
    Stage(
        "prepare",
        "rows to Harmony conversations and tokens",
        "{asset}.parquet, .jsonl",
        reads=(
            *("dataset", "-dataset.overlength", "-dataset.folder", "-dataset.num_proc"),
            *("model.tokenizer", "model.pretrained_model_name_or_path", "model.revision"),
        ),
    ),
    Stage(
        "publish", "register the data as a versioned asset", "data asset {asset}", ("prepare",), ("dataset.asset_name",)
    ),
    Stage(
        "train",
        "fine-tuning (TRL, PEFT, accelerate)",
        "{trained}",
        ("publish",),
        (
            *("model", "lora", "sft", "dataset.overlength", "compute.nodes", "compute.gpus_per_node"),
            *("-model.folder", "-model.tokenizer", "-model.license", "-sft.logging_steps", "-sft.save_steps"),
            *("-sft.save_total_limit", "-sft.verify_packing", "-sft.save_minutes"),
        ),
    ),
    Stage(
        "merge",
        "merge the adapter into the base, check the result",
        "{merged}",
        ("train", "publish"),
        ("merge", "model", "-model.folder", "-model.tokenizer"),
    ),
    Stage(
        "register",
        "register the merged model as a version",
        "model {model}",
        ("merge",),
        ("registration", "deployment.gate"),
    ),
    Stage(
        "deploy",
        "serve the registered model at an endpoint",
        "endpoint {endpoint}",
        ("register",),
        ("deployment", "-deployment.rollout", "-deployment.keep_failed", "-deployment.gate"),
    ),
    Stage("invoke", "send a request to the endpoint, print the answer", "answer", ("deploy",), always=True),
    Stage("plan", "what would run, memory, every problem; runs nothing", "this table", always=True),
    Stage(
        "evaluate",
        "ask base and merged model, compare their answers in a page",
        "evaluate/report.html",
        ("train", "merge", "publish"),
        (
            *("evaluation", "-evaluation.folder", "-evaluation.lm_eval.python", "model"),
            *("-model.folder", "-model.tokenizer", "-model.license"),
        ),
    ),
    Stage("report", "compare runs in a page: settings, curves, figures", "_report/report.html", always=True),
    Stage("teardown", "stop the endpoint and jobs under way, after asking", "nothing", always=True),
)
BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}


@dataclass(frozen=True)
class Made:
    """What a stage hands back.

    Attributes:
        summary: one line for the user.
        files: what was written, below the run's folder.
        result: figures and names for the record.
    """

    summary: str
    files: Sequence[Path] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A predecessor's record and the run folder that it lies in."""

    record: Record
    run_folder: Path

    @property
    def folder(self) -> Path:
        return self.run_folder / self.record.stage

    def address(self, name: str) -> str:
        """Where a file or folder of the run lies: a path here, or an address in the output of an Azure ML job."""
        return f"{self.record.place}/{name}" if self.record.place else str(self.run_folder / name)


@dataclass(frozen=True)
class Context:
    """What a stage's ``run`` is given.

    Attributes:
        config: the whole configuration.
        run_folder: ``outputs/<run>``.
        folder: ``outputs/<run>/<stage>``, where the stage writes.
        fingerprint: digest of all that the outcome depends on.
        needs: records of the stages it needs, by name.
        say: prints a line to the user.
        stage: the stage's name.
    """

    config: Config
    run_folder: Path
    folder: Path
    fingerprint: str
    needs: Mapping[str, Found]
    say: Callable[[str], None]

    stage: str

    @property
    def platform(self) -> Platform:
        """Where the stage's work happens."""
        return platform_of(place_of(self.stage, self.config), self.config, self.run_folder)


def settings_of(stage: Stage, config: Config) -> dict[str, Any]:
    """The configuration values that a stage's outcome depends on, by dotted key, flat."""
    whole = dict(flat(config.model_dump()))
    taken = [key for key in stage.reads if not key.startswith("-")]
    left = [key[1:] for key in stage.reads if key.startswith("-")]
    return {key: value for key, value in whole.items() if _below(key, taken) and not _below(key, left)}


def _below(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
