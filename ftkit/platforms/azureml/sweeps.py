"""Native sweeps: one Azure ML sweep job whose trials are the combinations, with early termination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from azure.ai.ml.sweep import Choice, MedianStoppingPolicy

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms import attempts
from ftkit.platforms.attempts import Place
from ftkit.platforms.azureml import changes, environments, jobs
from ftkit.platforms.azureml.known_jobs import FOLDER, Job, find, job_of, studio
from ftkit.platforms.azureml.submission import job, snapshot, tags, whole_model, write_given
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import JobRequest, Say

FIRST_DECISION, DECIDE_EVERY = 20, 5
"""Steps before a trial may be ended for a loss worse than the others' median, and between two looks."""

Space = Mapping[str, Sequence[str]]
"""Values by dotted key, as typed."""


def run(
    workspace: Workspace, config: Config, run_folder: Path, request: JobRequest, space: Space, say: Say, show: Say
) -> str:
    """Submit a sweep job, or follow the one under way; fetch the records of its trials.

    Returns:
        One line for the user: how many trials have finished, and how many were ended early.

    Raises:
        StageError: the sweep failed, or no trial has finished.
        Interrupted: Ctrl-C; the sweep goes on.
    """
    found = find(workspace, config, run_folder, request)
    if isinstance(found, Place):
        found = _submit(workspace, config, run_folder, request, found, space, say)
    say(f"sweep {found.name}: {_count(space)} trials, {config.azure_compute.max_concurrent_trials} at a time")
    ended = jobs.follow_to_end(workspace, config, run_folder, found, say, show)
    names = run_names(config.run.name, space)
    finished = [
        name for name in names if jobs.fetch(workspace, name, run_folder.parent / name, ended, f"{ended.store}/{name}")
    ]
    jobs.check_completed(workspace, ended, run_folder)
    attempts.remember(run_folder / FOLDER, replace(ended, fetched=True))
    stopped = len(names) - len(finished)
    return f"sweep {ended.name}: {len(finished)} trials finished" + (f", {stopped} ended early" if stopped else "")


def run_names(base: str, space: Space) -> list[str]:
    """Names of the trials' runs, ``tiny-lora.r=4``, as Hydra's own sweeps have them."""
    pairs = [[f"{key}={value}" for value in values] for key, values in space.items()]
    return [f"{base}-{','.join(combination)}" for combination in product(*pairs)]


def _submit(
    workspace: Workspace,
    config: Config,
    run_folder: Path,
    request: JobRequest,
    to: Place[Job],
    space: Space,
    say: Say,
) -> Job:
    config, owner = jobs.with_vault(workspace, config), workspace.owner
    environment = environments.ensure(workspace, "train", config.environment.train, say)
    store = jobs.new_store(workspace, config, to.name)
    given = run_folder / FOLDER / jobs.GIVEN
    write_given(config, request, given)
    asked = jobs.asked_for(workspace, request, to.name, store)
    attempts.remember(run_folder / FOLDER, asked)
    try:
        with snapshot(config) as code, whole_model(config, say) as model:
            trial = job(
                config,
                request,
                name=to.name,
                owner=owner,
                code=code,
                given=given,
                model=model,
                environment=environment,
                store=store,
                changes=_changes(config, space),
                parameters=[_input(key) for key in space],
            )
            wanted = _sweep(trial, config, space)
            wanted.name, wanted.tags = to.name, tags(config, request, store, owner)
            doing = ("submit a sweep over", ", ".join(space))
            made = job_of(changes.send(workspace, doing, lambda: workspace.client.jobs.create_or_update(wanted), say))
    except StageError as error:
        made = jobs.made_all_the_same(workspace, asked, error, say)
    attempts.remember(run_folder / FOLDER, made)
    say(studio(workspace, made))
    return made


def _sweep(trial: Any, config: Config, space: Space) -> Any:
    compute = config.azure_compute
    wanted = trial(**{_input(key): Choice(list(values)) for key, values in space.items()}).sweep(
        sampling_algorithm="grid",
        primary_metric="loss",
        goal="Minimize",
        max_total_trials=_count(space),
        max_concurrent_trials=compute.max_concurrent_trials,
    )
    wanted.experiment_name = compute.experiment_name
    wanted.compute = compute.cluster
    wanted.early_termination = MedianStoppingPolicy(evaluation_interval=DECIDE_EVERY, delay_evaluation=FIRST_DECISION)
    wanted.set_limits(timeout=round(compute.timeout_hours * 3600 * _count(space)))
    return wanted


def _changes(config: Config, space: Space) -> dict[str, str]:
    """Overrides of a trial: what is swept, and the name of its run."""
    values = {key: f"${{{{inputs.{_input(key)}}}}}" for key in space}
    suffix = ",".join(f"{key}={value}" for key, value in values.items())
    return {**values, "run.name": f"'\"{config.run.name}-{suffix}\"'"}


def _input(key: str) -> str:
    return key.replace(".", "_")


def _count(space: Space) -> int:
    return len(run_names("", space))
