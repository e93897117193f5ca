"""``method.start``: the merged model of another run, in the place of the model's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftkit import records
from ftkit.errors import Problem, StageError, nearest

KEY, MODEL = "method.start", "pretrained_model_name_or_path"


def go_on_from(values: dict[str, Any]) -> list[Problem]:
    """Put the merged model that ``method.start`` asks for into ``model``, and its digest into ``job``; in place.

    Args:
        values: the composed configuration as plain containers.

    Returns:
        What is wrong: there is no such run, none that was merged, or it is this run itself.
    """
    method, model, run = (values.get(name) for name in ("method", "model", "run"))
    if not isinstance(method, dict) or not isinstance(model, dict) or not isinstance(run, dict):
        return []
    start = method.get("start")
    if not isinstance(start, str):
        return []
    if start == run.get("name"):
        what = f"{start}, which is this run: its own records would go"
        return [Problem(KEY, what, "", f"run.name={start}-{method.get('name')}")]
    outputs = Path(str(run.get("outputs")))
    folder = outputs / start
    try:
        record = records.read(folder, "merge")
    except StageError as error:
        return [Problem(KEY, error.what, "", error.cure)]
    if record is None:
        return [_not_merged(start, folder, outputs)]
    name = record.result["folder"]
    if not record.place and not (folder / name / "config.json").is_file():
        return [Problem(KEY, f"{folder / name} is gone", "", f"run.name={start} stage=merge force=true makes it again")]
    if record.place and not model.get("tokenizer"):  # rows are prepared here
        model["tokenizer"] = model.get(MODEL)
    replaced = {"replaced": model.get(MODEL), "replaced_revision": model.get("revision")}
    model[MODEL] = f"{record.place}/{name}" if record.place else str(folder / name)
    model["revision"] = None
    values["job"] = {"start": record.result["digest"], **replaced}
    return []


def _not_merged(start: str, folder: Path, outputs: Path) -> Problem:
    if (folder / "config.yaml").is_file():
        cure = f"python -m ftkit --resolved {folder / 'config.yaml'} stage=merge"
        return Problem(KEY, f"the run {start} has no merged model", "", cure)
    runs = [path.parent.name for path in outputs.glob("*/config.yaml")]
    close = nearest(start, runs)
    cure = (
        f"did you mean {KEY}={close}?" if close else f"a run of {outputs}: {', '.join(sorted(runs)) or 'there is none'}"
    )
    return Problem(KEY, f"there is no run {start}", "", cure)
