"""Runs stages: finds what each needs, skips what is up to date, writes records. ``ftkit.stages`` has what they do."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from ftkit import records
from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, Stage
from ftkit.console import Report
from ftkit.digests import Digests
from ftkit.errors import FtkitError, Interrupted, StageError
from ftkit.files import explained, remove_left_behind, written_aside
from ftkit.locks import locked
from ftkit.packages import installed
from ftkit.pipeline.lineage import (
    Origin,
    changed_rows,
    context_of,
    find,
    folder_of,
    module_of,
    origin_of,
    up_to_date,
    what_is_replaced,
)
from ftkit.pipeline.preflight import refuse
from ftkit.pipeline.stage import Context, Found, Made
from ftkit.platforms.base import JobRequest, job_platform_of, platform_class, remote_platform_of
from ftkit.platforms.local import store
from ftkit.platforms.local.platform import store_of
from ftkit.processes import first_process
from ftkit.reports.index import write_index


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
    if config.job.records:
        with _failure_noted(config, config.stages[0]):
            if config.compute.elsewhere:
                platform_class(config).enter_job(config)
    if first_process():
        refuse(config)
    with _alone(config, report):
        if first_process() and (line := changed_rows(config)):
            report.line(line)
        for as_job, stages in batches(config):
            (_run_as_job if as_job else _run_here)(config, stages, report)


@contextmanager
def _alone(config: Config, report: Report) -> Iterator[None]:
    """Hold the run's folder while stages write to it, cleared of what killed commands have left.

    Of several processes that train together the first does so for all. Stages without a record write nothing there.

    Raises:
        StageError: another command is at work in it.
    """
    if not first_process() or all(BY_NAME[name].always for name in config.stages):
        yield
        return
    folder = folder_of(config)
    with locked(folder, f"stage={','.join(config.stages)} of {config.run.name}"):
        left = [*remove_left_behind(folder), *store.remove_left_behind(store_of(config))]
        for path in left:
            report.line(f"{path} was cut off while it was written; removed")
        _freeze(config)
        yield


def batches(config: Config) -> Iterator[tuple[bool, list[Stage]]]:
    """Consecutive stages that run in this process, or in one job."""
    stages = [BY_NAME[name] for name in config.stages]
    for as_job, group in groupby(stages, key=lambda stage: stage.runs_as_job(config)):
        yield as_job, list(group)


def _run_here(config: Config, stages: list[Stage], report: Report) -> None:
    with ExitStack() as until_trained:
        if any(stage.name == "train" for stage in stages):  # before environment, which has torch read its own, once
            until_trained.enter_context(_variables(config.compute.environment_variables))
        for stage in stages:
            try:
                if first_process():
                    run_stage(config, stage, report)
                elif stage.on_all_ranks:
                    _run_on_another_rank(config, stage)
            except KeyboardInterrupt as error:
                raise Interrupted(f"interrupted in {stage.name}; the same command takes it up again") from error
            if stage.name == "train":
                until_trained.close()  # an endpoint that deploy starts would inherit them
            _hand_back_gpu_memory()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, which are as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _hand_back_gpu_memory() -> None:
    """What a stage has left are cycles, and torch keeps their memory; a vLLM that deploy starts needs all of it.

    transformers takes the memory of a whole model in one piece. cuBLAS's workspace, which torch puts into a gap of it
    and holds on to, would keep the whole piece.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def _run_on_another_rank(config: Config, stage: Stage) -> None:
    """Run a stage in another process than that of rank 0, which keeps the record."""
    context = context_of(config, stage, origin_of(config, stage, read=False), lambda line: None)
    if config.force or not up_to_date(context, stage, read=False):
        with _failure_noted(config, stage.name):
            module_of(stage).run(context)


def run_sweep(config: Config, space: Mapping[str, Sequence[str]]) -> None:
    """Run the stages for every combination of values, in one sweep job.

    Args:
        config: of any of the combinations.
        space: values by dotted key, as typed.

    Raises:
        StageError, Interrupted: as ``run``.
    """
    report, stages = Report(config), [BY_NAME[name] for name in config.stages]
    started = time.perf_counter()
    request = _request(config, stages, report)
    swept = "; ".join(f"{key}={','.join(values)}" for key, values in space.items())
    fingerprint = records.fingerprint("sweep", {"over": swept}, {"of": request.fingerprint}, "")
    request = replace(request, fingerprint=fingerprint)
    report.started(request.stages[0])
    with _alone(config, report):
        platform = remote_platform_of(config, folder_of(config))
        summary = platform.run_sweep(request, space, report.line, report.of_job)
    report.finished(request.stages[-1], summary, time.perf_counter() - started)


def _run_as_job(config: Config, stages: list[Stage], report: Report) -> None:
    """Run stages in a job; a job that does the first of them already is taken up, and then a next one does the rest."""
    left = list(stages) if config.force else _without_finished(config, stages, report, report.skipped)
    platform = job_platform_of(config, folder_of(config)) if left else None
    while left and platform:
        started = time.perf_counter()
        request = _request(config, left, report)
        report.started(request.stages[0])
        job = platform.run_job(request, report.line, report.of_job)
        report.finished(job.stages[-1], f"job {job.name}: {', '.join(job.stages)} done", time.perf_counter() - started)
        done = [stage for stage in left if stage.name in job.stages]
        if not config.force and left[0] in _without_finished(config, done, report):
            raise StageError(
                f"job {job.name} has completed, and {left[0].name} is not what is asked for", cure="force=true"
            )
        rest = [stage for stage in left if stage not in done]
        _renew_index(config, done)
        left = rest if config.force else [*_without_finished(config, done, report), *rest]


def _request(config: Config, stages: list[Stage], report: Report) -> JobRequest:
    """What a job is to do: its stages, and the records of those made before."""
    context = context_of(config, stages[0], origin_of(config, stages[0]), report.line)
    given = {name: found.record for stage in stages for name, found in _made_before(config, stage, stages).items()}
    earlier = [record.result["store"] for record in given.values() if "store" in record.result]
    return JobRequest([s.name for s in stages], context.fingerprint, given, earlier[-1] if earlier else "")


def _without_finished(
    config: Config, stages: list[Stage], report: Report, skipped: Callable[[str, Path], None] | None = None
) -> list[Stage]:
    """The stages of a job, from the first that is not up to date; ``skipped`` hears of those before."""
    for index, stage in enumerate(stages):
        context = context_of(config, stage, origin_of(config, stage), report.line)
        if not up_to_date(context, stage):
            return stages[index:]
        if skipped:
            skipped(stage.name, records.path_of(context.run_folder, stage.name))
    return []


def _made_before(config: Config, stage: Stage, together: list[Stage]) -> dict[str, Found]:
    """Records that a stage needs and that are not made in the same job."""
    inside = {other.name for other in together}
    return {name: find(config, BY_NAME[name], stage.name) for name in stage.needs if name not in inside}


def run_stage(config: Config, stage: Stage, report: Report) -> None:
    """Run one stage in this process, unless its record says that nothing has changed."""
    origin = origin_of(config, stage)
    context = replace(context_of(config, stage, origin, report.line), label=report.label)
    if not config.force and not stage.always and up_to_date(context, stage):
        report.skipped(stage.name, records.path_of(context.run_folder, stage.name))
        return
    replaced = "" if stage.always else what_is_replaced(context, stage, origin)
    records.discard(context.run_folder, stage.name)
    report.started(stage.name)
    if replaced:
        report.line(replaced)
    started = time.perf_counter()
    made = _made(context, stage)
    seconds = time.perf_counter() - started
    if not stage.always:
        records.write(context.run_folder, _record(context, stage, origin, made, seconds))
    _renew_index(config, [stage])
    report.finished(stage.name, made.summary, seconds)


def _renew_index(config: Config, done: Sequence[Stage]) -> None:
    """Write the start page anew after stages that have made something to look at."""
    if any(stage.has_page for stage in done) and not config.job.records:
        with suppress(StageError, OSError):  # what was asked for is done in any case
            write_index(Path(config.run.outputs))


def _made(context: Context, stage: Stage) -> Made:
    with nullcontext() if stage.always else _failure_noted(context.config, stage.name):
        try:
            return module_of(stage).run(context)
        except OSError as error:
            raise explained(error, context.folder) from error


@contextmanager
def _failure_noted(config: Config, stage: str) -> Iterator[None]:
    """Leave word of an error, for a report, and for whoever follows the job that this process belongs to."""
    try:
        yield
    except FtkitError as error:
        what, cure = str(error).splitlines()[0], getattr(error, "cure", "")
        job = platform_class(config).own_job() if config.compute.has_jobs else ""
        records.note_failure(folder_of(config), stage, records.Failure(what, cure, job))
        raise


def _record(context: Context, stage: Stage, origin: Origin, made: Made, seconds: float) -> records.Record:
    digests = Digests(context.run_folder)(made.files)
    named = {path: path.relative_to(context.run_folder).as_posix() for path in made.files}
    return records.Record(
        stage=stage.name,
        fingerprint=context.fingerprint,
        settings=origin.settings,
        inputs=origin.inputs,
        files={name: path.stat().st_size for path, name in named.items()},
        digests={name: digests[path] for path, name in named.items()},
        result=dict(made.result),
        versions=installed(),
        seconds=round(seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _freeze(config: Config) -> None:
    path = folder_of(config) / "config.yaml"
    with written_aside(path) as aside:
        freeze(config, aside)
