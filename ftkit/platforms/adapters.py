"""A base model and adapters of several runs in one folder, as ``score.py`` serves them by name."""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from ftkit import records
from ftkit.assets import asset_path
from ftkit.chat.serving_defaults import FILE, ServingDefaults
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.files import check_links, copy_tree, remove_left_behind, tree, tree_digest, written_aside
from ftkit.records import Record
from ftkit.serving.endpoint import adapter_effect
from ftkit.serving.endpoint.adapters import FOLDER
from ftkit.training import artifact

CONFIG = "adapter_config.json"
PLACES = ("", "adapter", "train/adapter")
"""Where an adapter lies in the folder that is given: that of the adapter, of the stage, of the run."""


def digests_of(config: Config) -> dict[str, str]:
    """What tells the adapters of ``deployment.adapters`` apart, by name.

    Raises:
        StageError: as ``find_adapters``.
    """
    away = trained_elsewhere(config)
    here = {name: path for name, path in config.deployment.adapters.items() if name not in away}
    found = {name: tree_digest(_find(name, path, config)) for name, path in here.items()}
    return found | {name: record.fingerprint for name, record in away.items()}


def trained_elsewhere(config: Config) -> dict[str, Record]:
    """The records of those runs of ``deployment.adapters`` that were trained in jobs, where managed endpoints are."""
    if not config.deployment.managed:
        return {}
    given = {name: Path(path).expanduser() for name, path in config.deployment.adapters.items()}
    found = {name: record for name, run in given.items() if (record := records.read(run, "train"))}
    return {name: record for name, record in found.items() if record.place}


def bytes_of(config: Config) -> int:
    """Of all adapters of ``deployment.adapters``.

    Raises:
        StageError: as ``find_adapters``.
    """
    away, sizes = trained_elsewhere(config), []
    for record in away.values():
        sizes += [size for name, size in record.files.items() if name.startswith(f"{record.result['folder']}/")]
    here = [_find(name, path, config) for name, path in config.deployment.adapters.items() if name not in away]
    return sum(sizes) + sum(path.stat().st_size for folder in here for path in tree(folder).values())


def find_adapters(config: Config) -> dict[str, Path]:
    """The folders of ``deployment.adapters``, by name.

    Raises:
        StageError: one is no adapter, is unfinished, or was trained on another base model than ``model``.
    """
    return {name: _find(name, path, config) for name, path in config.deployment.adapters.items()}


def _find(name: str, path: str, config: Config) -> Path:
    given = Path(path).expanduser()
    for folder in (given / place for place in PLACES):
        if (folder / CONFIG).is_file():
            check_links(folder)
            if (folder / artifact.FILE).is_file():
                artifact.check_trained(folder, config)
            _check_record(folder)
            return folder
    key = f"deployment.adapters.{name}"
    beside = [str(run.parents[2]) for run in given.parent.glob(f"*/train/adapter/{CONFIG}")]
    near = difflib.get_close_matches(str(given), beside, n=1, cutoff=0) or ["outputs/<a run that was trained>"]
    raise StageError(f"{key} is no run with an adapter, and no folder of one", where=path, cure=f"{key}={near[0]}")


def _check_record(folder: Path) -> None:
    """Raises StageError: the adapter lies where it was trained, and is not what its record says."""
    if folder.parent.name != "train" or (record := records.read(folder.parents[1], "train")) is None:
        return
    if changed := record.changed_files(folder.parents[1]):
        cure = "stage=train in that run again"
        raise StageError(f"{changed[0]} was changed after it was trained", where=str(folder), cure=cure)


def lay_out(config: Config, adapters: Mapping[str, Path], within: Path) -> Path:
    """A folder that holds the model's folder: the base model by links, and copies of the adapters.

    Args:
        adapters: folders by name.
        within: where to put it, under a number that tells its content.

    Raises:
        StageError: there is no base model, or the folder cannot be written.
    """
    base, name = _base(config), config.model.name
    effects = {adapter: effect for adapter, path in adapters.items() if (effect := _effect_of(path))}
    digests = {adapter: tree_digest(path) for adapter, path in adapters.items()}
    parts = [str(base), config.model.revision, digests, {name: _digest(path) for name, path in effects.items()}]
    served = ServingDefaults.of(config, name)
    content = json.dumps([*parts, served._asdict()], sort_keys=True)
    folder = within / str(int(hashlib.sha256(content.encode()).hexdigest()[:12], 16))
    if folder.is_dir():
        return folder
    remove_left_behind(within)
    check_links(base)
    with written_aside(folder) as aside:
        model = aside / name
        model.mkdir(parents=True)
        for file in base.iterdir():
            if file.is_file() and not file.name.startswith("."):  # an ignore file would keep others from being sent
                (model / file.name).symlink_to(file.resolve())
        (model / FILE).unlink(missing_ok=True)  # of a model that ftkit merged, and that is a base now
        served.write(model)
        for adapter, path in adapters.items():
            copy_tree(path, model / FOLDER / adapter)
        for adapter, path in effects.items():
            shutil.copy2(path, model / FOLDER / adapter)
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _effect_of(adapter: Path) -> Path | None:
    """Where its training has left what the adapter does to a few rows, for vLLM to be held against."""
    path = adapter.parent / adapter_effect.FILE
    return path if adapter.parent.name == "train" and path.is_file() else None


def _base(config: Config) -> Path:
    """The base model's folder; one of the hub is fetched if it is not here yet."""
    model = config.model
    path = Path(model.folder or asset_path(model.pretrained_model_name_or_path)).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    wanted, others = ["*.json", "*.safetensors", "*.jinja"], ["original/*", "metal/*"]
    try:
        return Path(
            snapshot_download(str(path), revision=model.revision, allow_patterns=wanted, ignore_patterns=others)
        )
    except Exception as error:  # of the network, the hub, or the disk
        raise StageError(
            f"the base model is not to be had: {str(error).splitlines()[0]}",
            where=str(path),
            cure="model.pretrained_model_name_or_path=<its folder>",
        ) from error
