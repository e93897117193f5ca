"""Whether lm-eval and the tasks' files are where ``evaluation.lm_eval`` says, before anything is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ftkit.config.lm_eval import LmEval
from ftkit.config.option_files import shipped_environment
from ftkit.errors import Problem, nearest

KEY = "evaluation.lm_eval"
INSTALL = "python -m venv lm-eval && lm-eval/bin/pip install lm-eval"
"""Makes an environment for lm-eval, which needs an older python-dateutil than ftkit is tested with."""
HERE = f"{INSTALL}, then {KEY}.python=lm-eval/bin/python"
LOOK = "import importlib.util; print(importlib.util.find_spec('lm_eval') is not None)"

WITHOUT = "has no lm-eval"


def problems_here(settings: LmEval) -> Iterator[Problem]:
    """What keeps this machine from putting the tasks to a model."""
    if settings.python is None:
        if find_spec("lm_eval") is None:
            yield Problem(KEY, f"lm-eval is not installed for {sys.executable}", "", HERE)
    else:
        yield from _interpreter(Path(settings.python).expanduser())
    if settings.include_path:
        yield from _own_tasks(Path(settings.include_path).expanduser())


def problems_of_image() -> Iterator[Problem]:
    """What keeps an Azure ML job from it: nothing that its image is made of names lm-eval."""
    folder = shipped_environment() / "train"
    if any("lm-eval" in path.read_text(encoding="utf-8") for path in folder.iterdir()):
        return
    yield Problem(
        KEY,
        "evaluate runs in an Azure ML job, and lm-eval is not in its image",
        "",
        f"into {folder / 'Dockerfile'}: RUN python -m venv /opt/lm-eval && /opt/lm-eval/bin/pip install lm-eval; then "
        f"{KEY}.python=/opt/lm-eval/bin/python",
    )


def problems_without_tasks(settings: LmEval) -> Iterator[Problem]:
    """Settings of tasks that are not asked."""
    for name in ("include_path", "num_fewshot", "limit"):
        if (value := getattr(settings, name)) is not None:
            yield Problem(f"{KEY}.{name}", f"{value}, but no task is named", "", f"{KEY}.tasks=[gsm8k]")


def problems_of_names(settings: LmEval) -> Iterator[Problem]:
    for name in sorted({name for name in settings.tasks if settings.tasks.count(name) > 1}):
        yield Problem(KEY, f"{name} is named twice in tasks", "", "name each task once")


def _interpreter(path: Path) -> Iterator[Problem]:
    within = path / "bin" / "python"
    if within.is_file():
        yield Problem(KEY, f"python={path} is a folder", "", f"{KEY}.python={within}")
    elif not path.is_file():
        yield Problem(KEY, f"python={path}: there is no such file", "", HERE)
    elif said := _without_lm_eval(path.absolute()):
        cure = f"{path} -m pip install lm-eval" if said == WITHOUT else HERE
        yield Problem(KEY, f"python={path} {said}", "", cure)


@cache
def _without_lm_eval(python: Path) -> str:
    """What is wrong with an interpreter; empty if it has lm-eval."""
    try:
        found = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run: {getattr(error, 'strerror', None) or 'it does not answer'}"
    return {"True": "", "False": WITHOUT}.get(found.stdout.strip(), "is no Python")


def _own_tasks(folder: Path) -> Iterator[Problem]:
    key = f"{KEY}.include_path"
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = nearest(str(folder), beside)
        what = f"{folder} is no folder" if folder.exists() else f"no such folder: {folder}"
        yield Problem(key, what, "", f"did you mean {close}?" if close else "the folder that your YAML files lie in")
    elif not any(folder.rglob("*.yaml")):
        yield Problem(key, f"no .yaml file in {folder}", "", "a task of lm-eval is a file like mine.yaml")
