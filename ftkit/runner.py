"""Runs stages: finds what each needs, skips what is up to date, writes records. What a stage does is in ``ftkit.stages``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

from ftkit import __version__, records
from ftkit.config.checks import place_of
from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.console import Report
from ftkit.errors import Interrupted, StageError
from ftkit.files import explained, written_aside
from ftkit.stages import BY_NAME, Context, Found, Made, Stage, settings_of
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
        cure=f"stage=plan shows what would run; compute=local deployment=local runs it on this machine's GPUs",
    )


PLATFORMS: dict[str, Callable[[Config, list[Stage], Report], None]] = {
    "here": _run_here,
    "local": _run_here,
    "azureml": _run_on_azureml,
}


def run_stage(config: Config, stage: Stage, report: Report) -> None:
    """Run one stage in this process, unless its record says that nothing has changed."""
    run_folder = folder_of(config)
    module = importlib.import_module(f"ftkit.stages.{stage.name}")
    needs = {name: find(config, BY_NAME[name], stage.name) for name in stage.needs}
    settings = settings_of(stage, config)
    inputs = {name: found.record.fingerprint for name, found in needs.items()} | _outside(module, config)
    fingerprint = records.fingerprint(stage.name, settings, inputs, __version__)
    context = Context(config, run_folder, run_folder / stage.name, fingerprint, needs, report.line)
    if not config.force and not stage.always and _up_to_date(context, stage, module):
        report.skipped(stage.name, records.path_of(run_folder, stage.name))
        return
    with report.stage(stage.name) as finish:
        started = time.perf_counter()
        made = _made(module, context, stage)
        seconds = time.perf_counter() - started
        if not stage.always:
            records.write(run_folder, _record(context, stage, settings, inputs, made, seconds))
        finish(made.summary, seconds)


def find(config: Config, stage: Stage, wanted_by: str) -> Found:
    """The record of a stage that another one needs, from this run or from the run it builds on.

    Raises:
        StageError: there is none, its files are gone, or it was made with other settings or an earlier predecessor.
    """
    own = folder_of(config)
    base = Path(config.run.outputs) / config.run.base if config.run.base else own
    for run_folder in dict.fromkeys((own, base)):
        if record := records.read(run_folder, stage.name):
            found = Found(record, run_folder)
            _check(config, stage, found, wanted_by)
            return found
    missing = _missing_before(config, stage)
    raise StageError(
        f"{wanted_by} needs what {stage.name} makes, and it has not been run",
        where=str(records.path_of(base, stage.name)),
        cure=f"stage={','.join([*missing, wanted_by])}",
    )


def folder_of(config: Config) -> Path:
    """``outputs/<run>``."""
    return Path(config.run.outputs) / config.run.name


def _check(config: Config, stage: Stage, found: Found, wanted_by: str) -> None:
    record, where = found.record, str(records.path_of(found.run_folder, stage.name))
    if gone := record.missing_files(found.run_folder):
        raise StageError(
            f"{stage.name} made {gone[0]}, which is gone or has another size"
            + (f", and {len(gone) - 1} more" if len(gone) > 1 else ""),
            where=where,
            cure=f"stage={stage.name},{wanted_by} makes it again",
        )
    settings = settings_of(stage, config)
    if other := [key for key in settings if settings[key] != record.settings.get(key)]:
        raise StageError(
            f"{stage.name} was run with {other[0]}={record.settings.get(other[0])!r}, and now it is {settings[other[0]]!r}",
            where=where,
            cure=f"stage={stage.name},{wanted_by} runs it again, or leave {other[0]} as it was",
        )
    for name in stage.needs:
        earlier = find(config, BY_NAME[name], wanted_by)
        if earlier.record.fingerprint != record.inputs.get(name):
            raise StageError(
                f"{name} has been run again since {stage.name} was", where=where, cure=f"stage={stage.name},{wanted_by}"
            )


def _missing_before(config: Config, stage: Stage) -> list[str]:
    """The stage and those before it that have no record, in order."""
    before = [name for need in stage.needs for name in _missing_before(config, BY_NAME[need])]
    own = [] if records.read(folder_of(config), stage.name) else [stage.name]
    return list(dict.fromkeys(before + own))


def _up_to_date(context: Context, stage: Stage, module: ModuleType) -> bool:
    record = records.read(context.run_folder, stage.name)
    if record is None or record.fingerprint != context.fingerprint:
        return False
    if gone := record.missing_files(context.run_folder):
        context.say(f"{stage.name}: {gone[0]} is gone or has another size; running it again")
        return False
    still_there = getattr(module, "still_there", None)
    return still_there is None or still_there(context, record)


def _outside(module: ModuleType, config: Config) -> dict[str, str]:
    """Digests of what a stage takes from outside the run, where its module says."""
    digests = getattr(module, "outside_inputs", None)
    return digests(config) if digests else {}


def _made(module: ModuleType, context: Context, stage: Stage) -> Made:
    records.discard(context.run_folder, stage.name)
    try:
        return module.run(context)
    except OSError as error:
        raise explained(error, context.folder) from error


def _record(
    context: Context, stage: Stage, settings: dict[str, Any], inputs: dict[str, str], made: Made, seconds: float
) -> records.Record:
    return records.Record(
        stage=stage.name,
        fingerprint=context.fingerprint,
        settings=settings,
        inputs=inputs,
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
