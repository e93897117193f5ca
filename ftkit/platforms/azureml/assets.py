"""Data assets and registered models: immutable versions, found by their digest so that nothing is sent twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from azure.ai.ml.entities import Data, Model

from ftkit.errors import StageError
from ftkit.platforms.azureml import changes
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Asset, Say

DIGEST = "digest"
"""Tag that holds a version's digest."""


def publish(
    workspace: Workspace, name: str, content: Path, digest: str, tags: Mapping[str, Any], say: Say
) -> tuple[Asset, bool]:
    """Keep a folder as the data asset version that its digest names; sent only if there is no such version."""
    version = digest[:12]
    kept = {DIGEST: digest, **_texts(tags)}
    reference = f"azureml:{name}:{version}"
    asset = Asset("data", name, version, "uri_folder", digest, kept, reference)
    with_version = lambda: workspace.client.data.get(name, version)  # noqa: E731
    if _found(workspace, f"data asset {asset.id}", with_version):
        return asset, False
    wanted = Data(name=name, version=version, type="uri_folder", path=str(content), tags=kept)
    doing = ("publish the data asset", asset.id)
    changes.send(workspace, doing, lambda: workspace.client.data.create_or_update(wanted), say)
    return asset, True


def register(workspace: Workspace, name: str, content: str, digest: str, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
    """Register what lies in a job's output as the next version of a model, where it lies; nothing is downloaded.

    Args:
        content: ``azureml://jobs/…/outputs/…/paths/…``.
        digest: of the merged model; a version that bears it already is taken as it is.
    """
    if found := _version_with(workspace, name, digest):
        return found, False
    wanted = Model(name=name, type="custom_model", path=content, tags={DIGEST: digest, **_texts(tags)})
    with workspace.asking("register the model", name):
        return _model(workspace.client.models.create_or_update(wanted)), True


def send_model(
    workspace: Workspace, name: str, content: Path, digest: str, tags: Mapping[str, Any], say: Say
) -> tuple[Asset, bool]:
    """Register a folder of this machine as the next version of a model; sent only if no version bears its digest."""
    if found := _version_with(workspace, name, digest):
        return found, False
    wanted = Model(name=name, type="custom_model", path=str(content), tags={DIGEST: digest, **_texts(tags)})
    doing = ("register the model", name)
    sent = changes.send(workspace, doing, lambda: workspace.client.models.create_or_update(wanted), say)
    return _model(sent), True


def exists(workspace: Workspace, asset: Mapping[str, Any]) -> bool:
    """Whether the version of a data asset or model is still in the workspace."""
    client, name, version = workspace.client, asset["name"], asset["version"]
    look = client.data.get if asset["kind"] == "data" else client.models.get
    return _found(workspace, f"{asset['kind']} {name}:{version}", lambda: look(name, version))


def _version_with(workspace: Workspace, name: str, digest: str) -> Asset | None:
    with workspace.asking("list the versions of model", name):
        versions = list(workspace.client.models.list(name)) if _has_model(workspace, name) else []
    return next((_model(found) for found in versions if (found.tags or {}).get(DIGEST) == digest), None)


def _has_model(workspace: Workspace, name: str) -> bool:
    return any(model.name == name for model in workspace.client.models.list())


def _found(workspace: Workspace, what: str, look: Callable[[], Any]) -> bool:
    try:
        with workspace.asking("look for", what):
            look()
    except StageError as error:
        if is_missing(error.__cause__):
            return False
        raise
    return True


def _model(found: Model) -> Asset:
    tags = {str(key): str(value) for key, value in (found.tags or {}).items()}
    version = str(found.version)
    reference = f"azureml:{found.name}:{version}"
    return Asset("models", str(found.name), version, "custom_model", tags.get(DIGEST, ""), tags, reference)


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in tags.items()}
