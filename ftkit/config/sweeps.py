"""What a native sweep of Azure ML runs over, read from the command line."""

from __future__ import annotations

from ftkit.config.overrides import ON_THE_COMMAND_LINE, CommandLine
from ftkit.config.places import runs_as_job
from ftkit.config.schema import Config
from ftkit.config.sources import groups
from ftkit.errors import ConfigError, Problem


def native_space(base: Config, command_line: CommandLine) -> dict[str, list[str]]:
    """Values by dotted key, as typed.

    Args:
        base: configuration of any of the combinations.
        command_line: with the swept overrides.

    Raises:
        ConfigError: a stage does not run in a job, options of a group are swept, or nothing is.
    """
    swept = [override for override in command_line.overrides if override.is_sweep_override()]
    problems = [
        Problem("stage", f"{name} runs in no job, so a native sweep cannot run it", ON_THE_COMMAND_LINE, "stage=train")
        for name in base.stages
        if not runs_as_job(name, base)
    ]
    problems += [
        Problem(
            override.key_or_group,
            "a native sweep takes values, not options of a group",
            ON_THE_COMMAND_LINE,
            "compute.sweep=launcher hydra/launcher=azureml",
        )
        for override in swept
        if override.key_or_group in groups()
    ]
    if not swept:
        problems.append(Problem("-m", "nothing is swept", ON_THE_COMMAND_LINE, "lora.r=8,16"))
    if problems:
        raise ConfigError(problems)
    return {override.key_or_group: list(map(str, override.sweep_string_iterator())) for override in swept}
