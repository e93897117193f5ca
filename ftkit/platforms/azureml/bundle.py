"""The base model and adapters as one registered model: a managed deployment mounts one, and no more.

It is laid out here, with the base by links, and sent once. The endpoint needs no further rights for it, as it would to
fetch adapters when it starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.digests import Digests
from ftkit.errors import StageError
from ftkit.files import size_in_words, tree_digest
from ftkit.platforms.adapters import find_adapters, lay_out, trained_elsewhere
from ftkit.platforms.azureml import assets
from ftkit.platforms.azureml.datastore import Datastore
from ftkit.platforms.azureml.known_jobs import FOLDER
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say
from ftkit.records import Record


def registered(
    workspace: Workspace, config: Config, run_folder: Path, tags: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    """The version of ``<registration.model_name>-adapters`` that holds them; sent only if there is none.

    Raises:
        StageError: an adapter or the base model is not to be had, or they cannot be sent.
    """
    for name, record in trained_elsewhere(config).items():
        _fetch(workspace, name, Path(config.deployment.adapters[name]).expanduser(), record, say)
    adapters = find_adapters(config)
    within = run_folder / FOLDER / "with-adapters"
    laid_out = lay_out(config, adapters, within)
    for earlier in within.iterdir():
        if earlier.is_dir() and earlier != laid_out:
            shutil.rmtree(earlier)
    model = laid_out / config.model.name
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    names, base = ", ".join(adapters), config.model.pretrained_model_name_or_path
    about = {**tags, "run": config.run.name, "base": base, "adapters": names}
    name, digest = f"{config.registration.model_name}-adapters", tree_digest(model, digests=Digests(within))
    asset, new = assets.send_model(workspace, name, model, digest, about, say)
    sent = "sent" if new else "nothing sent, it is there"
    say(f"model {asset.id}: {config.model.name} with {names}, {size_in_words(size)}, {sent}")
    return asdict(asset)


def _fetch(workspace: Workspace, name: str, run: Path, record: Record, say: Say) -> None:
    """Bring an adapter here that a job has trained, unless it is; what it does to a few rows came with its record.

    Raises:
        StageError: it is not to be had, or not what the record says.
    """
    folder = str(record.result["folder"])
    digests = {path: digest for path, digest in record.digests.items() if path.startswith(f"{folder}/")}
    adapter = replace(record, place="", files={path: record.files[path] for path in digests}, digests=digests)
    if digests and not adapter.changed_files(run):
        return
    say(f"adapter {name}: fetching it from {record.place}")
    Datastore(workspace).fetch(f"{record.result['store']}/{folder}", run / folder)
    if changed := adapter.changed_files(run):
        cure = "stage=train in that run again"
        raise StageError(f"{changed[0]} was changed after it was trained", where=record.place, cure=cure)
