"""Shape and family of the model, from the checkpoint's own config.json; what ``auto`` stands for in this family.

The file is looked for in the model's folder, in the hub's cache, and on the hub. Where it cannot be read,
``model.architecture`` is taken at its word: options that ship with ftkit state the shape of the model they name.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ftkit.assets import asset_path
from ftkit.config.groups import Architecture, Model
from ftkit.config.option_files import shipped_conf
from ftkit.errors import Problem, StageError
from ftkit.families import DEFAULT, FAMILIES, Family, family_of

PATH, SHAPE = "model.pretrained_model_name_or_path", "model.architecture"
HUB_TIMEOUT_S = 5.0


def complete(values: dict[str, Any]) -> list[Problem]:
    """Fill in ``model.architecture`` from the checkpoint, and every ``auto`` that depends on the family; in place.

    Args:
        values: the composed configuration as plain containers.

    Returns:
        What is wrong: the shape cannot be known, or what is stated is another model's.
    """
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("pretrained_model_name_or_path"), str):
        return []
    stated = _model_type(model)
    job = values.get("job")
    found, problem = _read(model, job.get("model") if isinstance(job, dict) else None)
    problems = [problem] if problem else _settle(model, found)
    family = family_of(_model_type(model) or DEFAULT)
    if family.model_type != stated:  # the option's own choices are for the family of its own model
        for key, allowed in (("attn_implementation", family.attention), ("experts_implementation", family.experts)):
            model[key] = model[key] if model.get(key) in allowed else "auto"
    _choose(values, family)
    return problems


def _model_type(model: dict[str, Any]) -> str | None:
    architecture = model.get("architecture")
    found = architecture.get("model_type") if isinstance(architecture, dict) else None
    return found if isinstance(found, str) else None


def can_be_read(model: Model) -> bool:
    """Whether the shape is the checkpoint's own, and not only what ``model.architecture`` states."""
    return _config_file(model.model_dump(), model.folder) is not None


def holds_mxfp4(model: Model) -> bool:
    """Whether the checkpoint's experts are in MXFP4; False where its config.json cannot be read from here."""
    try:
        path = _config_file(model.model_dump(), model.folder)
        config = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return config.get("quantization_config", {}).get("quant_method") == "mxfp4"
    except (StageError, OSError, ValueError, RecursionError, AttributeError):
        return False


def published_with_shape(shape: Architecture) -> str | None:
    """The hub id of a model of this shape for which ftkit has an option; of several the first by the option's name."""
    shapes = _shipped_shapes().items()
    return next((path for path, (_, stated) in shapes if stated == shape.model_dump() and "/" in path), None)


def _settle(model: dict[str, Any], found: dict[str, Any] | None) -> list[Problem]:
    """Decide between the shape that was found and the one that is stated."""
    path, stated = model["pretrained_model_name_or_path"], model.get("architecture")
    shipped = _shipped_shapes()
    inherited = any(stated == shape and other != path for other, (_, shape) in shipped.items())
    if found is None:
        if path in shipped and stated != shipped[path][1] and inherited:
            option = shipped[path][0]
            return [Problem(SHAPE, f"is another model's, and {path} has a shape of its own", "", f"model={option}")]
        if stated is None:
            cure = f"{PATH}=<a folder that holds the model>, or state its shape, as conf/model/qwen3-8b.yaml does"
            return [Problem(SHAPE, f"null, and config.json of {path} cannot be read from here", "", cure)]
        return []
    model["architecture"] = found
    if not isinstance(stated, dict):
        return []
    wrong = {key for key in _typed(stated, path) if key in found and stated[key] != found[key]}
    return [
        Problem(
            f"{SHAPE}.{key}",
            f"{stated[key]}, and the checkpoint has {found[key]}",
            "",
            f"{SHAPE}.{key}={found[key]}, or another {PATH}",
        )
        for key in sorted(wrong)
    ]


def _typed(stated: dict[str, Any], path: str) -> set[str]:
    """Keys of a stated shape that are meant for this model: all in its own option, else what differs from one."""
    shapes = {other: shape for other, (_, shape) in _shipped_shapes().items() if shape}
    if path in shapes:
        return set(stated)
    nearest = max(shapes.values(), key=lambda shape: sum(stated.get(key) == value for key, value in shape.items()))
    return {key for key, value in stated.items() if nearest.get(key) != value}


def _read(model: dict[str, Any], mounted: str | None) -> tuple[dict[str, Any] | None, Problem | None]:
    """The checkpoint's shape, if its config.json can be read from here, and what is wrong with it."""
    try:
        path = _config_file(model, mounted)
        if path is None:
            return None, _no_model(model["pretrained_model_name_or_path"])
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except StageError as error:
        return None, Problem(PATH, error.what, "", error.cure)
    except (OSError, ValueError, RecursionError) as error:
        return None, Problem(PATH, f"config.json of the model cannot be read: {error}", "", f"{PATH}=…")
    except (KeyError, TypeError):
        return None, Problem(PATH, "config.json of the model names no model_type", "", f"{PATH}=…")
    try:
        return family_of(model_type).shape(config), None
    except (KeyError, TypeError):
        known = ", ".join(sorted(FAMILIES))
        what = f"its model_type is {model_type!r}, which is no causal language model of a shape that ftkit knows"
        return None, Problem(PATH, what, "", f"a model of one of {known}, or another causal language model")


def _no_model(name: str) -> Problem | None:
    """What a folder without a config.json is instead, if it is known: an adapter, or a run."""
    folder = Path(asset_path(name)).expanduser()
    if (folder / "adapter_config.json").is_file():
        what = "the folder of an adapter, which is no model by itself"
    elif (folder / "config.yaml").is_file():
        what = "the folder of a run, which is no model itself"
    else:
        return None
    run = next((above for above in (folder, *folder.parents) if (above / "config.yaml").is_file()), None)
    if run is None:
        return Problem(PATH, what, "", f"{PATH}=<a folder that holds the adapter's base model with it merged>")
    if (run / "merged" / "config.json").is_file():
        return Problem(PATH, what, "", f"{PATH}={run / 'merged'}")
    cure = f"python -m ftkit --resolved {run / 'config.yaml'} stage=merge, then {PATH}={run / 'merged'}"
    return Problem(PATH, what, "", cure)


def _config_file(model: dict[str, Any], mounted: str | None) -> Path | None:
    """Where the checkpoint's config.json lies on this machine, fetched from the hub if need be; None if nowhere.

    Args:
        mounted: folder of the model inside a job.
    """
    name, revision = model["pretrained_model_name_or_path"], model.get("revision")
    folder = Path(mounted or asset_path(name)).expanduser()
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    if name.startswith(("azureml:", ".", "/", "~")) or name.count("/") != 1:
        return None
    return _from_hub(name, revision, ask=name not in _shipped_shapes())


@cache
def _from_hub(name: str, revision: str | None, *, ask: bool) -> Path | None:
    """From the hub's cache, and with ``ask`` from the hub itself."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{name.replace('/', '--')}"
    if not ask and not cached.is_dir():
        return None
    from huggingface_hub import HfApi, hf_hub_download

    offline = not ask or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except Exception:
        if offline:
            return None
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)  # asks once; a download asks five times
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception:  # whatever the hub's client raises: loading says it in full
        return None


@cache
def _shipped_shapes() -> dict[str, tuple[str, dict[str, Any] | None]]:
    """Path of each model that ftkit ships an option for → the option's name and the shape that it states."""
    found: dict[str, tuple[str, dict[str, Any] | None]] = {}
    for file in sorted((shipped_conf() / "model").glob("*.yaml")):
        values = _inherited(file)
        found[values["pretrained_model_name_or_path"]] = (file.stem, values.get("architecture"))
    return found


def _inherited(file: Path) -> dict[str, Any]:
    """An option's values with those of the options that it builds on."""
    own = yaml.safe_load(file.read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            values = _inherited(file.with_name(f"{base}.yaml"))
    shape = {**(values.get("architecture") or {}), **(own.get("architecture") or {})}
    return values | own | {"architecture": shape or None}


def _choose(values: dict[str, Any], family: Family) -> None:
    """Put what the family has in the place of each ``auto``."""
    model, lora = values["model"], values.get("lora")
    compute = values.get("compute")
    on_gpu = isinstance(compute, dict) and compute.get("gib_per_gpu") is not None
    stock = [name for name in family.attention if not name.startswith("ftkit_") and name != "flex_attention"]
    if model.get("attn_implementation") == "auto":
        model["attn_implementation"] = family.attention[0] if on_gpu or family.mxfp4 else stock[0]
    if model.get("experts_implementation") == "auto":
        model["experts_implementation"] = family.experts[0]
    if isinstance(lora, dict) and lora.get("target_parameters") == "auto":
        lora["target_parameters"] = [f"mlp.experts.{name}" for name in family.expert_tensors] or None
