"""The command line, ``python -m ftkit stage=train compute=h100x2``: Hydra resolves it, the runner runs it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ftkit import __version__
from ftkit.console import print_error
from ftkit.errors import ConfigError, FtkitError, Interrupted, Problem
from ftkit.processes import end_now, keep_ctrl_c, one_of_several

HYDRA_ONLY = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc")
TAKE_A_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m ftkit`` and of ``ftkit``; ends the process with status 0, 1, 2, 130 or 143."""
    keep_ctrl_c()
    status = _status_of(list(sys.argv[1:] if arguments is None else arguments))
    if one_of_several():
        end_now(status)
    sys.exit(status)


def _status_of(arguments: list[str]) -> int:
    try:
        try:
            _dispatch(arguments)
        except FtkitError as error:
            print_error(error)
            return error.exit_status
    except KeyboardInterrupt:
        print_error(Interrupted("interrupted"))
        return Interrupted.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or "--help" in arguments or "-h" in arguments:
        from ftkit.help import print_help, print_overview

        topics = [a for a in arguments if not a.startswith("-")]
        print_help(topics) if arguments else print_overview()
    elif "--version" in arguments:
        print(f"ftkit {__version__}")
    elif "--resolved" in arguments:
        _run_frozen(arguments)
    elif any(flag in arguments for flag in HYDRA_ONLY):
        from ftkit.completion import complete

        if not complete(arguments):
            _hand_to_hydra(arguments)
    else:
        _resolve_and_run(arguments)


def _resolve_and_run(arguments: list[str]) -> None:
    from ftkit.config.overrides import read
    from ftkit.config.resolve import check_sweep, resolve

    flags, overrides = _split(arguments)
    if "-m" in flags or "--multirun" in flags:
        command_line = read(overrides, multirun=True)
        check_sweep(command_line)
        base = resolve(next(command_line.combinations()))
        if base.compute.sweep == "native" and base.stages != ("plan",):
            _run_native_sweep(base, command_line)
            return
        fixed = ",".join(sorted(command_line.keys - command_line.swept()))
        naming = f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]"
        _hand_to_hydra([*flags, *command_line.arguments, naming])
    elif flags:
        resolve(overrides)
        _hand_to_hydra([*flags, *read(overrides, multirun=False).arguments])
    else:
        _run(resolve(overrides))


def _run_native_sweep(base, command_line) -> None:
    from ftkit.config.sweeps import native_space
    from ftkit.runner import run_sweep

    space = native_space(base, command_line)
    run_sweep(base, space)


def _run(config, label: str = "") -> None:
    if not config.stages:
        raise ConfigError(
            [Problem("stage", "not given", "", "stage=plan shows what would run, stage=all runs the life cycle")]
        )
    from ftkit.runner import run

    run(config, label)


def _run_frozen(arguments: list[str]) -> None:
    """``--resolved FILE stage=… [force=true]``: a configuration resolved before, of which nothing else can change."""
    from ftkit.config.overrides import read
    from ftkit.config.resolve import load_frozen

    position = arguments.index("--resolved") + 1
    if position >= len(arguments):
        raise ConfigError(
            [Problem("--resolved", "names no file", "on the command line", "--resolved outputs/<run>/config.yaml")]
        )
    command_line = read(arguments[: position - 1] + arguments[position + 1 :], multirun=False)
    in_job = "run.records" in command_line.keys  # of a sweep perhaps, each of whose trials has values of its own
    fixed = [
        Problem(key, "is fixed by --resolved", "on the command line", "")
        for key in command_line.keys
        if key not in ("stage", "force", "yes") and not in_job
    ]
    if fixed or command_line.problems:
        raise ConfigError([*command_line.problems, *fixed])
    changes = {override.key_or_group: override.value() for override in command_line.overrides}
    _run(load_frozen(Path(arguments[position]), changes))


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    for i, argument in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1] in TAKE_A_VALUE
        (flags if argument.startswith("-") or is_value else overrides).append(argument)
    return flags, overrides


def _hand_to_hydra(arguments: list[str]) -> None:
    import hydra

    from ftkit.config.sources import register_search_path, shipped_conf

    register_search_path()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main() as they are
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(shipped_conf()), config_name="config")(_sweep_task)()


def _sweep_task(composed) -> float:
    """One run of a sweep: named after what is swept, built on the records of the run that is swept over.

    Returns:
        What hydra/sweeper=search makes small: the held-out loss, or else the last one; infinity without training.
    """
    from hydra.core.hydra_config import HydraConfig

    from ftkit.config.resolve import from_composed, named_after_overrides

    settings = HydraConfig.get()
    swept_out = set(settings.job.config.override_dirname.exclude_keys)
    try:
        base = from_composed(composed)
        config = named_after_overrides(base, settings.overrides.task, swept_out)
        at_a_time = settings.launcher.get("n_jobs", 1) != 1
        _run(config, config.run.name.removeprefix(f"{base.run.name}-") if at_a_time else "")
        return _sought(config)
    except Interrupted as error:
        raise KeyboardInterrupt from error  # an Exception would let the sweep go on to its next run
    except FtkitError as error:
        print_error(error)
        raise


def _sought(config) -> float:
    from ftkit import records
    from ftkit.lineage import folder_of

    record = records.read(folder_of(config), "train")
    if record is None:
        return math.inf
    held_out = record.result.get("eval_loss")
    return record.result["last_loss"] if held_out is None else held_out


if __name__ == "__main__":
    main()
