"""What the folders of runs say about their trainings, finished or not, here or on Azure ML; imports no torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftkit import records
from ftkit.config.compute import label_of
from ftkit.errors import StageError, nearest
from ftkit.files import whole_lines
from ftkit.records import Record, SubmittedJob, flat
from ftkit.training.losses import losses_of, source_of

GROUPS = ("model", "dataset", "lora", "method", "sft", "compute")
"""Groups of the configuration that a training depends on."""
FOLLOWS = ("model.architecture.", "dataset.asset_name")
"""Keys that say nothing new beside others."""


@dataclass(frozen=True)
class Training:
    """One run's training.

    Attributes:
        name: of the run.
        status: ``finished``, ``failed`` or ``unfinished``.
        note: why it is not finished, as far as that is known.
        settings: configuration values by dotted key.
        steps: lines of ``metrics.jsonl`` of training, by rising step.
        evaluations: those of evaluations.
        result: figures of the record, or as far as the lines tell.
        where: the machine, or the job.
        overrides: that the run was started with; None if it is not known.
        base: run that its rows come from, if it is another.
        model_name: ``registration.model_name``.
        folder: of the run.
    """

    name: str
    status: str
    note: str
    settings: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    result: dict[str, Any]
    where: str
    overrides: list[str] | None = None
    base: str | None = None
    model_name: str = ""
    folder: Path = field(default=Path())

    @property
    def method(self) -> str:
        """``method.name``; runs that are older than the group were supervised."""
        return str(self.settings.get("method.name") or "sft")

    def figure(self, name: str) -> float | None:
        """A finite figure of the result, or None."""
        value = self.result.get(name)
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def source_losses(self) -> dict[str, float]:
        """The held-out loss of each source of ``dataset.mix``."""
        found = self.result.get("source_losses") or self.result
        return {source: found[name] for name in losses_of(found) if (source := source_of(name))}

    @property
    def hours(self) -> float | None:
        seconds = self.figure("seconds")
        return None if seconds is None else seconds / 3600

    def command(self, stages: Sequence[str]) -> str:
        """The command line that runs stages of this run."""
        if self.overrides is None:
            return f"python -m ftkit --resolved {self.folder / 'config.yaml'} stage={','.join(stages)}"
        left_out = ("stage", "force", "yes", "check", "attach", "run.name", "run.base")
        kept = [o.lstrip("+") for o in self.overrides if o.lstrip("+").partition("=")[0] not in left_out]
        place = [f"run.name={_quoted(self.name)}"]
        if self.base not in (None, self.name):
            place += [f"run.base={_quoted(str(self.base))}", f"registration.model_name={self.model_name}"]
        return shlex.join(["python", "-m", "ftkit", *kept, *place, f"stage={','.join(stages)}"])


def trainings(outputs: Path, names: Sequence[str] | None) -> list[Training]:
    """Those of the runs of these names, or of all runs below ``outputs``; the best first, unfinished ones last.

    Raises:
        StageError: there is no such run, or none at all.
    """
    folders = run_folders(outputs)
    for name in names or ():
        if name not in folders:
            close = nearest(name, folders)
            cure = f"did you mean {close}?" if close else f"there are {', '.join(folders) or 'none'}"
            raise StageError(f"there is no run {name}", where=str(outputs), cure=cure)
    chosen = [folders[name] for name in names] if names is not None else list(folders.values())
    found = [training for folder in chosen if (training := read(folder)) is not None]
    if not found:
        raise StageError("no run has been trained here", where=str(outputs), cure="stage=train, or run.outputs=…")
    return sorted(found, key=lambda training: (training.status != "finished", *_quality(training, found)))


def run_folders(outputs: Path) -> dict[str, Path]:
    """The folders of all runs below ``outputs``, by name."""
    return {path.name: path for path in sorted(outputs.glob("[!._]*")) if (path / "config.yaml").is_file()}


def read(folder: Path) -> Training | None:
    """One run's training; None if it has never begun."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    record = records.read(folder, "train")
    lines = list(whole_lines(folder / "train" / "metrics.jsonl"))
    why, job = records.failure(folder, "train"), _training_job(folder)
    if record is None and why is None and not lines and job is None:
        return None
    steps = [
        line for line in lines if _has_numbers(line, "step", "loss", "seconds", "tokens", "tokens_per_s", "peak_gib")
    ]
    evaluations = [line for line in lines if _has_numbers(line, "step", "eval_loss")]
    settings = {key: value for key, value in flat(config) if key.startswith(tuple(f"{g}." for g in GROUPS))}
    status, note = _status(record, why and why.what, steps, job)
    return Training(
        name=folder.name,
        status=status,
        note=note,
        settings=settings | (record.settings if record else {}),
        steps=steps,
        evaluations=evaluations,
        result=record.result if record else _so_far(steps, evaluations),
        where=_where(record, settings, job),
        overrides=(config.get("job") or {}).get("overrides"),
        base=config["run"].get("base"),
        model_name=config["registration"]["model_name"],
        folder=folder,
    )


def _has_numbers(line: dict[str, Any], *names: str) -> bool:
    return all(isinstance(line.get(name), (int, float)) for name in names)


def differing(found: Sequence[Training]) -> list[str]:
    """Dotted keys whose values are not the same in all trainings, in the order of the configuration."""
    keys = dict.fromkeys(key for training in found for key in training.settings if not key.startswith(FOLLOWS))
    return [key for key in keys if len({_text(training.settings.get(key)) for training in found}) > 1]


def best(found: Sequence[Training]) -> Training | None:
    """The finished training with the lowest held-out loss; the lowest last loss where none has one."""
    finished = [training for training in found if training.status == "finished"]
    return min(finished, key=lambda training: _quality(training, found), default=None)


def best_since(outputs: Path, beginning: str, began: float) -> str:
    """In words, the best of the runs whose names begin so and that were started since; empty if none has trained.

    Args:
        began: seconds since 1970.
    """
    folders = [
        folder
        for name, folder in run_folders(outputs).items()
        if name.startswith(beginning) and (folder / "config.yaml").stat().st_mtime >= began
    ]
    found = [training for folder in folders if (training := read(folder)) is not None]
    if (winner := best(found)) is None:
        return ""
    figure = judged_by(found)
    name = {"eval_loss": "held-out loss", "last_loss": "loss"}[figure]
    finished = sum(training.status == "finished" for training in found)
    return f"{finished} of {len(found)} finished; lowest {name} {winner.result[figure]:.4f}: {winner.name}"


def judged_by(found: Sequence[Training]) -> str:
    """Name of the figure that trainings are compared by."""
    finished = [training for training in found if training.status == "finished"]
    held_out = any(training.figure("eval_loss") is not None for training in finished)
    return "eval_loss" if held_out else "last_loss"


def data_differ(found: Sequence[Training]) -> bool:
    """Whether finished trainings had other rows to learn from or to be judged by: then their losses say little."""
    keys = {"method.name", "dataset.path", "dataset.split", "dataset.revision", "dataset.heldout", "dataset.max_rows"}
    finished = [training.settings for training in found if training.status == "finished"]
    keys |= {key for settings in finished for key in settings if key.startswith("dataset.mix")}
    return len({_text([settings.get(key) for key in sorted(keys)]) for settings in finished}) > 1


def _quality(training: Training, found: Sequence[Training]) -> tuple[float, str]:
    value = training.figure(judged_by(found))
    return (math.inf if value is None else value, training.name)


def _status(
    record: Record | None, why: str | None, steps: list[dict[str, Any]], job: SubmittedJob | None
) -> tuple[str, str]:
    if record:
        return "finished", ""
    reached = f"step {steps[-1]['step']}" if steps else "no step"
    if why:
        stopped = why.startswith(("stopped", "interrupted"))
        return ("unfinished" if stopped else "failed"), why
    if job and not steps:
        failed = job.status in records.FAILED
        return ("failed" if failed else "unfinished"), f"job {job.name}: {job.status}"
    return "unfinished", f"{reached} is the last that was logged"


def _so_far(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    if not steps:
        return {}
    last = steps[-1]
    figures = {"last_loss": last["loss"], "seconds": last["seconds"], "global_step": last["step"]}
    figures |= {"tokens": last["tokens"], "tokens_per_s": last["tokens"] / max(last["seconds"], 1e-9)}
    figures["peak_gib"] = max(line["peak_gib"] for line in steps)
    return figures | {k: v for k, v in (evaluations[-1] if evaluations else {}).items() if k != "step"}


def _where(record: Record | None, settings: dict[str, Any], job: SubmittedJob | None) -> str:
    nodes, gpus = settings.get("compute.nodes", 1), settings.get("compute.gpus_per_node", 1)
    if (record and record.place) or (job and not record):
        name = record.result.get("job", "") if record else job.name if job else ""
        machine = settings.get("compute.instance_type") or f"{gpus} process{'es' if gpus > 1 else ''}"
        return f"{_platform(record, job)}, {nodes} × {machine}" + (f", job {name}" if name else "")
    return "here" + (f", {nodes * gpus} processes" if nodes * gpus > 1 else "")


def _platform(record: Record | None, job: SubmittedJob | None) -> str:
    """What ran a job, whatever the run's configuration has come to be since."""
    if job:
        return label_of(job.platform)
    return label_of("azureml" if record and record.place.startswith("azureml:") else "slurm")


def _training_job(folder: Path) -> SubmittedJob | None:
    job = records.submitted_job(folder)
    return job if job and "train" in job.stages else None


def _quoted(name: str) -> str:
    """A name as Hydra takes it: a comma would begin a sweep."""
    return f'"{name}"' if "," in name or "=" in name else name


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
