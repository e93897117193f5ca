"""Lineage: which records a stage may build on, and whether its own is up to date."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ftkit import __version__, records
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, PROCESS, Stage
from ftkit.errors import StageError
from ftkit.pipeline.stage import Context, Found, settings_of


@dataclass(frozen=True)
class Origin:
    """All that a stage's outcome depends on.

    Attributes:
        settings: configuration values, by dotted key.
        inputs: fingerprints of predecessors and digests of files from outside.
        needs: the predecessors' records.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    needs: dict[str, Found]


def module_of(stage: Stage) -> ModuleType:
    return importlib.import_module(f"ftkit.stages.{stage.name}")


def folder_of(config: Config) -> Path:
    """``outputs/<run>``."""
    return Path(config.run.outputs) / config.run.name


def origin_of(config: Config, stage: Stage, *, read: bool = True) -> Origin:
    """Collect what a stage depends on.

    Args:
        read: False takes the files of predecessors that have their size for unchanged.

    Raises:
        StageError: a predecessor has not been run, or not with these settings.
    """
    needs = {name: find(config, BY_NAME[name], stage.name, read=read) for name in stage.needed(config)}
    inputs = {name: found.record.fingerprint for name, found in needs.items()}
    outside = getattr(module_of(stage), "outside_inputs", None)
    return Origin(settings_of(stage, config), inputs | (outside(config) if outside else {}), needs)


def context_of(config: Config, stage: Stage, origin: Origin, say: Callable[[str], None]) -> Context:
    """What the stage's ``run`` is given."""
    fingerprint = records.fingerprint(stage.name, origin.settings, origin.inputs, __version__)
    run_folder = folder_of(config)
    return Context(config, run_folder, run_folder / stage.name, fingerprint, origin.needs, say, stage.name)


def find(config: Config, stage: Stage, wanted_by: str, *, read: bool = True) -> Found:
    """The record of a stage that another one needs, from this run or from the run it builds on.

    Args:
        read: False takes files that have their size for unchanged.

    Raises:
        StageError: there is none, its files are gone or changed, or it was made with other settings or an earlier
            predecessor.
    """
    own, given = folder_of(config), config.job.records
    base = Path(config.run.outputs) / config.run.base if config.run.base else own
    earlier = Path(config.job.earlier) if config.job.earlier else own
    for run_folder in dict.fromkeys((own, base, earlier)):
        if record := records.read(run_folder, stage.name):
            found = Found(record, run_folder)
            _check(config, stage, found, wanted_by, read)
            return found
    if given and (record := records.read(Path(given), stage.name)):
        return Found(record, Path(given))  # checked where the job was submitted; what was made is not here
    missing = _missing_before(config, stage)
    raise StageError(
        f"{wanted_by} needs what {stage.name} makes, and it has not been run",
        where=str(records.path_of(base, stage.name)),
        cure=f"stage={','.join([*missing, wanted_by])}",
    )


def _check(config: Config, stage: Stage, found: Found, wanted_by: str, read: bool) -> None:
    record, where = found.record, str(records.path_of(found.run_folder, stage.name))
    again = f"stage={','.join(_from(stage.name, wanted_by))}"
    if gone := record.changed_files(found.run_folder, read=read):
        more = f", and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise StageError(f"{stage.name} made {gone[0]}, which is gone or changed{more}", where=where, cure=again)
    settings = settings_of(stage, config)
    keys = dict.fromkeys((*settings, *record.settings))  # lora=none has fewer
    if other := [key for key in keys if settings.get(key) != record.settings.get(key)]:
        then, now = record.settings.get(other[0]), settings.get(other[0])
        raise StageError(
            f"{stage.name} was run with {other[0]}={then!r}, and now it is {now!r}",
            where=where,
            cure=f"{again}, or leave {other[0]} as it was",
        )
    for name in stage.needed(config):
        earlier = find(config, BY_NAME[name], wanted_by, read=False)
        if earlier.record.fingerprint != record.inputs.get(name):
            raise StageError(f"{name} has been run again since {stage.name} was", where=where, cure=again)


def _from(first: str, last: str) -> list[str]:
    """Stages to run from one that is out of date to one that needs it, in order."""
    return [
        name for name in BY_NAME if (name == first or _depends(name, first)) and (name == last or _depends(last, name))
    ]


def _depends(stage: str, on: str) -> bool:
    needs = BY_NAME[stage].needs if stage in BY_NAME else ()
    return on in needs or any(_depends(need, on) for need in needs)


def _missing_before(config: Config, stage: Stage) -> list[str]:
    """The stage and those before it that have no record, in order."""
    before = [name for need in stage.needed(config) for name in _missing_before(config, BY_NAME[need])]
    own = [] if records.read(folder_of(config), stage.name) else [stage.name]
    return list(dict.fromkeys(before + own))


def up_to_date(context: Context, stage: Stage, *, ask_platform: bool = True, read: bool = True) -> bool:
    """Whether a stage's record was made from just these settings and inputs, and what it made is still there.

    Args:
        context: of the stage.
        stage: which one.
        ask_platform: False believes the record about what lies on a platform elsewhere.
        read: False takes files that have their size for unchanged.
    """
    record = records.read(context.run_folder, stage.name)
    if record is None or record.fingerprint != context.fingerprint:
        return False
    if gone := record.changed_files(context.run_folder, read=read):
        context.say(f"{stage.name}: {gone[0]} is gone or changed; running it again")
        return False
    if not ask_platform and stage.place_of(context.config) not in (PROCESS, "local"):
        return True
    still_there = getattr(module_of(stage), "still_there", None)
    return still_there is None or still_there(context, record)


def what_is_replaced(context: Context, stage: Stage, origin: Origin) -> str:
    """In words, what a stage made before with other settings or other inputs, and will make anew; empty for nothing."""
    try:
        record = records.read(context.run_folder, stage.name)
    except StageError:
        return ""
    if record is None or record.fingerprint == context.fingerprint:
        return ""
    changed = [f"{key}={value!r}" for key, value in record.settings.items() if origin.settings.get(key, value) != value]
    changed += [f"{key}={value!r}" for key, value in record.settings.items() if key not in origin.settings]
    made = f"replaces what {stage.name} made on {record.finished[:10]}"
    if changed:
        more = f" and {len(changed) - 3} other settings" if len(changed) > 3 else ""
        return f"{made} with {', '.join(changed[:3])}{more}; another run.name keeps both"
    inputs = [name for name, digest in origin.inputs.items() if record.inputs.get(name) != digest]
    return f"{made} from {f'another {inputs[0]}' if inputs else 'an earlier version of ftkit'}"


def changed_rows(config: Config) -> str:
    """A line for the user where the rows' files are others by now than those that were prepared; else empty."""
    if config.job.records or "prepare" in config.stages or not {"publish", "train"} & set(config.stages):
        return ""
    stage = BY_NAME["prepare"]
    try:
        then = find(config, stage, config.stages[0]).record.inputs.get("rows")
    except StageError:  # which the stage that needs it will say
        return ""
    now = module_of(stage).outside_inputs(config).get("rows")
    if not now or now == then:
        return ""
    again = ",".join(_from("prepare", config.stages[-1]))
    return f"{config.dataset.places} has changed since prepare; stage={again} takes the new rows"
