"""Runs stages: finds what each needs, skips what is up to date, writes records. ``ftkit.stages`` has what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby

from ftkit import records
from ftkit.config.checks import place_of
from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.console import Report
from ftkit.errors import Interrupted, StageError
from ftkit.files import explained, written_aside
from ftkit.lineage import Origin, context_of, folder_of, module_of, origin_of, up_to_date
from ftkit.stages import BY_NAME, Context, Made, Stage
from ftkit.versions import installed


def run(config: Config) -> None:
    """Run the stages that the configuration asks for, in the order of the life cycle.

    Raises:
        StageError: a stage failed; those before it keep their records.
        Interrupted: Ctrl-C; running the same command again goes on from there.
    """
    report = Report(config)
    for place, stages in batches(config):
        PLATFORMS[place](config, stages, report)


def batches(config: Config) -> Iterator[tuple[str, list[Stage]]]:
    """Consecutive stages that run in one place, together: on Azure ML each batch is one job."""
    stages = [BY_NAME[name] for name in config.stages]
    for place, group in groupby(stages, key=lambda stage: place_of(stage.name, config)):
        yield place, list(group)


def _run_here(config: Config, stages: list[Stage], report: Report) -> None:
    if any(stage.name != "plan" for stage in stages):
        _freeze(config)
    for stage in stages:
        try:
            run_stage(config, stage, report)
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted in {stage.name}; the same command takes it up again") from error


def _run_on_azureml(config: Config, stages: list[Stage], report: Report) -> None:
    names = ",".join(stage.name for stage in stages)
    raise StageError(
        f"this version plans {names} on Azure ML but cannot run it there yet",
        cure="stage=plan shows what would run; compute=local deployment=local runs it on this machine's GPUs",
    )


PLATFORMS: dict[str, Callable[[Config, list[Stage], Report], None]] = {
    "here": _run_here,
    "local": _run_here,
    "azureml": _run_on_azureml,
}


def run_stage(config: Config, stage: Stage, report: Report) -> None:
    """Run one stage in this process, unless its record says that nothing has changed."""
    origin = origin_of(config, stage)
    context = context_of(config, stage, origin, report.line)
    if not config.force and not stage.always and up_to_date(context, stage):
        report.skipped(stage.name, records.path_of(context.run_folder, stage.name))
        return
    report.started(stage.name)
    started = time.perf_counter()
    made = _made(context, stage)
    seconds = time.perf_counter() - started
    if not stage.always:
        records.write(context.run_folder, _record(context, stage, origin, made, seconds))
    report.finished(stage.name, made.summary, seconds)


def _made(context: Context, stage: Stage) -> Made:
    records.discard(context.run_folder, stage.name)
    try:
        return module_of(stage).run(context)
    except OSError as error:
        raise explained(error, context.folder) from error


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
