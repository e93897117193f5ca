"""Why a deployment did not start, or how its adapters came out: the end of its container's log."""

from __future__ import annotations

from contextlib import suppress

from ftkit.errors import StageError
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say
from ftkit.serving.server_log import compared, reason

READ, SHOWN = 1000, 30
"""Lines."""


def with_log(workspace: Workspace, error: StageError, endpoint: str, name: str, say: Say) -> StageError:
    """Print the end of the container's log, or what fetched model and code before it began; the error says why."""
    get = workspace.client.online_deployments.get_logs
    text = ""
    with suppress(StageError), workspace.asking("get the log of", f"{endpoint}/{name}"):
        text = get(name, endpoint, lines=READ).strip("\n")
        text = text or get(name, endpoint, lines=READ, container_type="storage-initializer")
    for line in text.splitlines()[-SHOWN:]:
        say(f"{name}: {line}")
    if not (why := reason(text)):
        return error
    return StageError(f"{name} did not start: {why}", where=error.where, cure="mend that; the log is above")


def compared_adapters(workspace: Workspace, endpoint: str, name: str) -> list[str]:
    """What it says of each adapter that its vLLM applies; nothing where the log cannot be had."""
    with suppress(StageError), workspace.asking("get the log of", f"{endpoint}/{name}"):
        return compared(workspace.client.online_deployments.get_logs(name, endpoint, lines=READ))
    return []
