"""Runs stages: finds what each needs, skips what is up to date, writes records. ``ftkit.stages`` has what they do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from ftkit import records
from ftkit.config.places import runs_as_job
from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.console import Report
from ftkit.errors import FtkitError, Interrupted
from ftkit.files import explained, written_aside
from ftkit.lineage import Origin, context_of, find, folder_of, module_of, origin_of, up_to_date
from ftkit.platforms.azureml import AzureML
from ftkit.platforms.azureml.inside import own_job, read_hub_token
from ftkit.platforms.azureml.work import Work
from ftkit.processes import first_process
from ftkit.stages import BY_NAME, Context, Found, Made, Stage
from ftkit.versions import installed


def run(config: Config, label: str = "") -> None:
    """Run the stages that the configuration asks for, in the order of the life cycle.

    Args:
        config: the whole configuration.
        label: begins every printed line, where several runs print at a time.

    Raises:
        StageError: a stage failed; those before it keep their records.
        Interrupted: Ctrl-C; running the same command again goes on from there.
    """
    report = Report(config, label)
    if config.run.records:
        with _failure_noted(folder_of(config), config.stages[0]):
            read_hub_token(config)
    if first_process() and set(config.stages) - {"plan", "report"}:
        _freeze(config)
    for as_job, stages in batches(config):
        (_run_as_job if as_job else _run_here)(config, stages, report)


def batches(config: Config) -> Iterator[tuple[bool, list[Stage]]]:
    """Consecutive stages that run in this process, or in one job on Azure ML."""
    stages = [BY_NAME[name] for name in config.stages]
    for as_job, group in groupby(stages, key=lambda stage: runs_as_job(stage.name, config)):
        yield as_job, list(group)


def _run_here(config: Config, stages: list[Stage], report: Report) -> None:
    for stage in stages:
        try:
            if first_process():
                run_stage(config, stage, report)
            elif stage.name == "train":
                _help_train(config, stage)
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted in {stage.name}; the same command takes it up again") from error


def _help_train(config: Config, stage: Stage) -> None:
    """One of several training processes that Azure ML has started; the first one keeps the record."""
    context = context_of(config, stage, origin_of(config, stage), lambda line: None)
    if config.force or not up_to_date(context, stage):
        with _failure_noted(context.run_folder, stage.name):
            module_of(stage).run(context)


def run_sweep(config: Config, space: Mapping[str, Sequence[str]]) -> None:
    """Run the stages for every combination of values, in one sweep job of Azure ML.

    Args:
        config: of any of the combinations.
        space: values by dotted key, as typed.

    Raises:
        StageError, Interrupted: as ``run``.
    """
    report, stages = Report(config), [BY_NAME[name] for name in config.stages]
    started = time.perf_counter()
    work = _work(config, stages, report)
    swept = "; ".join(f"{key}={','.join(values)}" for key, values in space.items())
    work = replace(work, fingerprint=records.fingerprint("sweep", {"over": swept}, {"of": work.fingerprint}, ""))
    report.started(work.stages[0])
    summary = AzureML(config, folder_of(config)).run_sweep(work, space, report.line, report.of_job)
    report.finished(work.stages[-1], summary, time.perf_counter() - started)


def _run_as_job(config: Config, stages: list[Stage], report: Report) -> None:
    left = _without_finished(config, stages, report)
    if not left:
        return
    started = time.perf_counter()
    work = _work(config, left, report)
    report.started(work.stages[0])
    job = AzureML(config, folder_of(config)).run_job(work, report.line, report.of_job)
    summary = f"job {job.name}: {', '.join(work.stages)} done"
    report.finished(work.stages[-1], summary, time.perf_counter() - started)


def _work(config: Config, stages: list[Stage], report: Report) -> Work:
    """What a job is to do: its stages, and the records of those made before."""
    context = context_of(config, stages[0], origin_of(config, stages[0]), report.line)
    given = {name: found.record for stage in stages for name, found in _made_before(config, stage, stages).items()}
    earlier = [record.result["store"] for record in given.values() if "store" in record.result]
    return Work([stage.name for stage in stages], context.fingerprint, given, earlier[-1] if earlier else "")


def _without_finished(config: Config, stages: list[Stage], report: Report) -> list[Stage]:
    """The stages of a job, from the first that is not up to date."""
    for index, stage in enumerate(stages):
        context = context_of(config, stage, origin_of(config, stage), report.line)
        if config.force or not up_to_date(context, stage):
            return stages[index:]
        report.skipped(stage.name, records.path_of(context.run_folder, stage.name))
    return []


def _made_before(config: Config, stage: Stage, together: list[Stage]) -> dict[str, Found]:
    """Records that a stage needs and that are not made in the same job."""
    inside = {other.name for other in together}
    return {name: find(config, BY_NAME[name], stage.name) for name in stage.needs if name not in inside}


def run_stage(config: Config, stage: Stage, report: Report) -> None:
    """Run one stage in this process, unless its record says that nothing has changed."""
    origin = origin_of(config, stage)
    context = context_of(config, stage, origin, report.line)
    if not config.force and not stage.always and up_to_date(context, stage):
        report.skipped(stage.name, records.path_of(context.run_folder, stage.name))
        return
    records.discard(context.run_folder, stage.name)
    report.started(stage.name)
    started = time.perf_counter()
    made = _made(context, stage)
    seconds = time.perf_counter() - started
    if not stage.always:
        records.write(context.run_folder, _record(context, stage, origin, made, seconds))
    report.finished(stage.name, made.summary, seconds)


def _made(context: Context, stage: Stage) -> Made:
    with nullcontext() if stage.always else _failure_noted(context.run_folder, stage.name):
        try:
            return module_of(stage).run(context)
        except OSError as error:
            raise explained(error, context.folder) from error


@contextmanager
def _failure_noted(run_folder: Path, stage: str) -> Iterator[None]:
    """Leave word of an error, for a report, and for whoever follows the job that this process belongs to."""
    try:
        yield
    except FtkitError as error:
        what, cure = str(error).splitlines()[0], getattr(error, "cure", "")
        records.note_failure(run_folder, stage, records.Failure(what, cure, own_job()))
        raise


def _record(context: Context, stage: Stage, origin: Origin, made: Made, seconds: float) -> records.Record:
    return records.Record(
        stage=stage.name,
        fingerprint=context.fingerprint,
        settings=origin.settings,
        inputs=origin.inputs,
        files={path.relative_to(context.run_folder).as_posix(): path.stat().st_size for path in made.files},
        result=dict(made.result),
        versions=installed(),
        seconds=round(seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _freeze(config: Config) -> None:
    path = folder_of(config) / "config.yaml"
    with written_aside(path) as aside:
        freeze(config, aside)
