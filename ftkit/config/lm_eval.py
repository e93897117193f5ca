"""The keys ``evaluation.lm_eval``, and whether lm-eval and the tasks' files are where they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ftkit.config.fields import Group, PositiveInt


class LmEval(Group):
    """Tasks that lm-eval's own harness puts to the models; its figures stand beside ftkit's own."""

    tasks: list[str]
    """Names of lm-eval's tasks, groups or tags, [gsm8k, mmlu]; [] asks none."""
    python: str | None
    """Interpreter of an environment that holds lm-eval; it needs nothing else. null takes the one that runs ftkit."""
    include_path: str | None
    """Folder with YAML files of your own tasks, which tasks can name."""
    num_fewshot: Annotated[int, Field(ge=0)] | None
    """Worked examples before each question; null takes what each task says."""
    limit: PositiveInt | None
    """Questions of each task at the most, the first ones; null asks all."""


def include_folder(settings: LmEval, mounted: str | None) -> Path | None:
    """The folder with the user's tasks; None if there is none.

    Args:
        settings: the keys.
        mounted: ``job.evaluation``: the folder that holds it inside a job.
    """
    if settings.include_path is None:
        return None
    path = Path(settings.include_path).expanduser()
    return Path(mounted, path.name) if mounted else path.absolute()
