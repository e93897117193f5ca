"""Where llama.cpp's converter is: ``merge.gguf`` names its script, the folder that holds it, or a program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ftkit.config.schema import Config
from ftkit.errors import Problem, StageError, nearest

SCRIPT = "convert_hf_to_gguf.py"


def find_converter(given: str) -> Path:
    """The script or program that ``merge.gguf`` names.

    Raises:
        StageError: it is not there, or nothing that can be run.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / SCRIPT).is_file():
            raise StageError(f"{path} holds no {SCRIPT}", cure="the folder of llama.cpp, or merge.gguf=null")
        return path / SCRIPT
    if not path.is_file():
        beside = [str(p) for p in path.parent.iterdir() if _may_be_it(p)] if path.parent.is_dir() else []
        close = nearest(str(path), beside)
        other = f"the path of llama.cpp or of its {SCRIPT}, or merge.gguf=null"
        cure = f"did you mean merge.gguf={close}?" if close else other
        raise StageError(f"no such file or folder: {path}", cure=cure)
    if path.suffix != ".py" and not os.access(path, os.X_OK):
        what = f"{path} is neither a Python script nor a program"
        raise StageError(what, cure=f"the path of llama.cpp's {SCRIPT}, or merge.gguf=null")
    return path


def _may_be_it(path: Path) -> bool:
    """Whether a neighbour may be what was meant: the script, a program, or a folder that holds it."""
    if path.is_dir():
        return (path / SCRIPT).is_file()
    return path.name == SCRIPT or (path.suffix != ".py" and os.access(path, os.X_OK))


def converter_can_be_run(config: Config) -> Iterator[Problem]:
    """Its place is looked at as soon as ``merge`` is asked for."""
    given, key = config.merge.gguf, "merge.gguf"
    if given is None:
        return
    if config.compute.elsewhere:
        said = f"{given} is on this machine, and merge runs in an Azure ML job"
        own = f"merge.gguf=null; then download the registered model and run {SCRIPT} on its folder"
        yield Problem(key, said, "", own)
    elif {"merge", "plan"} & {*config.stages}:
        try:
            find_converter(given)
        except StageError as error:
            yield Problem(key, error.what, "", error.cure)
