"""The command line, ``python -m ftkit stage=train compute=h100x2``: Hydra resolves it, the runner runs it."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 of a checkout that pip has not installed
    sys.exit("ftkit needs Python 3.11 or newer; scripts/setup makes .venv, then: .venv/bin/python -m ftkit")

try:
    from ftkit import __version__
    from ftkit.config.words import ON_THE_COMMAND_LINE
    from ftkit.console import print_error
    from ftkit.errors import ConfigError, FtkitError, Interrupted, Problem
    from ftkit.processes import end_now, keeping_ctrl_c, one_of_several, wait_passively
    from ftkit.translation import LANGUAGES, speak
except ModuleNotFoundError as missing:
    if str(missing.name).startswith("ftkit"):
        raise
    sys.exit(f"ftkit needs {missing.name}, which this Python lacks; scripts/setup, then: .venv/bin/python -m ftkit")

RUNS_OF_SWEEP = "FTKIT_RUNS_OF_SWEEP"
"""How many runs a sweep has, for each of them; set by the command, for its own processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m ftkit`` and of ``ftkit``; ends the process with status 0, 1, 2, 130 or 143."""
    wait_passively()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without the letters of a text must not end a stage
    given = list(sys.argv[1:] if arguments is None else arguments)
    speak(next((language for language in LANGUAGES if f"language={language}" in given), None))
    status = _status_of(given)
    if one_of_several():
        end_now(status)
    sys.exit(status)


def _status_of(arguments: list[str]) -> int:
    try:
        try:
            with keeping_ctrl_c():
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
        from ftkit.cli.help import print_help, print_overview

        topics = [a for a in arguments if not a.startswith("-")]
        print_help(topics) if arguments else print_overview()
    elif "--version" in arguments:
        print(f"ftkit {__version__}")
    elif "--resolved" in arguments:
        _run_frozen(arguments)
    else:
        _dispatch_to_hydra_or_run(arguments)


def _dispatch_to_hydra_or_run(arguments: list[str]) -> None:
    from ftkit.cli.flags import HYDRA_ONLY, split

    if any(flag in arguments for flag in HYDRA_ONLY):
        from ftkit.cli.completion import complete

        if not complete(arguments):
            _hand_to_hydra(arguments)
        return
    flags, overrides = split(arguments)
    if "--cfg" in flags:
        _print_composed(flags, overrides)
    elif "--multirun" in flags:
        _sweep(overrides)
    else:
        from ftkit.config.resolve import resolve

        _run(resolve(overrides))


def _print_composed(flags: dict[str, str], overrides: list[str]) -> None:
    """``--cfg job``: the composed configuration as YAML; of a sweep, its first combination."""
    from omegaconf import OmegaConf

    from ftkit.config.hydra_compose import compose_overrides
    from ftkit.config.overrides import read

    command_line = read(overrides, multirun="--multirun" in flags)
    if command_line.problems:
        raise ConfigError(list(command_line.problems))
    if flags["--cfg"] != "job":
        _hand_to_hydra(["--cfg", flags["--cfg"], *next(command_line.combinations())])
        return
    composed = compose_overrides(next(command_line.combinations())).config
    if package := flags.get("--package"):
        composed = OmegaConf.select(composed, package)
        if not OmegaConf.is_config(composed):
            raise ConfigError([Problem("--package", f"no group {package!r}", ON_THE_COMMAND_LINE, "--package sft")])
    print(OmegaConf.to_yaml(composed, resolve="--resolve" in flags), end="")


def _sweep(overrides: list[str]) -> None:
    from ftkit.config.overrides import read
    from ftkit.config.resolve import check_sweep, resolve

    command_line = read(overrides, multirun=True)
    check_sweep(command_line)
    base = resolve(next(command_line.combinations()))
    if getattr(base.compute, "sweep", "") == "native" and base.stages != ("plan",):
        _run_native_sweep(base, command_line)
        return
    fixed = ",".join(sorted(command_line.keys - command_line.swept()))
    naming = f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]"
    runs = len(list(command_line.combinations()))
    os.environ[RUNS_OF_SWEEP] = "" if "hydra/sweeper" in command_line.keys else str(runs)
    began = time.time()
    _hand_to_hydra(["--multirun", *command_line.arguments, naming])
    if "train" in base.stages:
        _print_best_of_sweep(base, began)


def _print_best_of_sweep(base, began: float) -> None:
    """The best training of a sweep that began at a time, seconds since 1970."""
    from ftkit.console import Report
    from ftkit.reports.runs import best_since

    if found := best_since(Path(base.run.outputs), f"{base.run.name}-", began):
        more = "stage=report compares their curves and settings"
        Report(base).finished("sweep", f"{found}; {more}", time.time() - began)


def _run_native_sweep(base, command_line) -> None:
    from ftkit.config.sweeps import native_space
    from ftkit.pipeline.runner import run_sweep

    space = native_space(base, command_line)
    run_sweep(base, space)


def _run(config, label: str = "") -> None:
    if not config.stages:
        raise ConfigError(
            [Problem("stage", "not given", "", "stage=plan shows what would run, stage=all runs the life cycle")]
        )
    from ftkit.pipeline.runner import run

    run(config, label)


def _run_frozen(arguments: list[str]) -> None:
    """``--resolved FILE stage=… [force=true]``: a configuration resolved before, of which nothing else can change."""
    from ftkit.config.overrides import read
    from ftkit.config.resolve import load_frozen

    position = arguments.index("--resolved") + 1
    if position >= len(arguments):
        raise ConfigError(
            [Problem("--resolved", "names no file", ON_THE_COMMAND_LINE, "--resolved outputs/<run>/config.yaml")]
        )
    command_line = read(arguments[: position - 1] + arguments[position + 1 :], multirun=False)
    in_job = "job.records" in command_line.keys  # of a sweep perhaps, each of whose trials has values of its own
    fixed = [
        Problem(key, "is fixed by --resolved", ON_THE_COMMAND_LINE, "")
        for key in command_line.keys
        if key not in ("stage", "force", "yes", "language") and not in_job
    ]
    if fixed or command_line.problems:
        raise ConfigError([*command_line.problems, *fixed])
    changes = {override.key_or_group: override.value() for override in command_line.overrides}
    _run(load_frozen(Path(arguments[position]), changes))


def _hand_to_hydra(arguments: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ftkit.config.hydra_source import register_search_path
    from ftkit.config.option_files import shipped_conf

    register_search_path()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main() as they are
    sys.argv[1:] = arguments
    try:
        hydra.main(version_base="1.3", config_path=str(shipped_conf()), config_name="config")(_sweep_task)()
    except (HydraException, OmegaConfBaseException) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        cure = "python -m ftkit --hydra-help lists Hydra's flags"
        raise ConfigError([Problem("hydra", what, ON_THE_COMMAND_LINE, cure)]) from error


def _sweep_task(_) -> float:
    """One run of a sweep: named after what is swept, built on the records of the run that is swept over.

    Returns:
        What hydra/sweeper=search makes small: the held-out loss, or else the last one; infinity without training.
    """
    from hydra.core.hydra_config import HydraConfig

    from ftkit.config.resolve import named_after_overrides, resolve
    from ftkit.console import print_of_sweep

    settings = HydraConfig.get()
    swept_out = set(settings.job.config.override_dirname.exclude_keys)
    try:
        base = resolve(list(settings.overrides.task))
        config = named_after_overrides(base, settings.overrides.task, swept_out)
        at_a_time = settings.launcher.get("n_jobs", 1) != 1
        label = config.run.name.removeprefix(f"{base.run.name}-") if at_a_time else ""
        if runs := os.environ.get(RUNS_OF_SWEEP):
            print_of_sweep(settings.job.num + 1, int(runs), label)
        _run(config, label)
        return _objective(config)
    except Interrupted as error:
        raise KeyboardInterrupt from error  # an Exception would let the sweep go on to its next run
    except FtkitError as error:
        print_error(error)
        raise


def _objective(config) -> float:
    from ftkit import records
    from ftkit.pipeline.lineage import folder_of

    record = records.read(folder_of(config), "train")
    if record is None:
        return math.inf
    held_out = record.result.get("eval_loss")
    return record.result["last_loss"] if held_out is None else held_out


if __name__ == "__main__":
    main()
