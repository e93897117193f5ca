"""Calls of Azure Resource Manager that azure-ai-ml does not have, by its pipeline and the workspace's credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from azure.core.pipeline.policies import RetryPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.core import ARMPipelineClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

from ftkit.platforms.azureml.workspace import ARM_SCOPE, Workspace

ARM = "https://management.azure.com"


def send(
    workspace: Workspace,
    doing: tuple[str, str],
    method: str,
    address: str,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One request.

    Args:
        doing: an infinitive and its object, for messages.
        address: the whole of it, with its api-version.
        body: sent as JSON.

    Returns:
        The JSON of the answer; empty where it has none.

    Raises:
        StageError: the service refused it, or did not answer.
    """
    policies = [RetryPolicy(), ARMChallengeAuthenticationPolicy(workspace.credential, ARM_SCOPE)]
    with ARMPipelineClient(ARM, policies=policies) as client, workspace.asking(*doing):
        answer = client.send_request(HttpRequest(method, address, json=body))
        answer.raise_for_status()
        return answer.json() if answer.content else {}


def address_of(path: str, api_version: str) -> str:
    return f"{ARM}{path}?api-version={api_version}"


def listed(workspace: Workspace, doing: tuple[str, str], path: str, api_version: str) -> Iterator[dict[str, Any]]:
    """Items of a collection, page after page."""
    address = address_of(path, api_version)
    while address:
        answer = send(workspace, doing, "GET", address)
        yield from answer.get("value") or ()
        address = answer.get("nextLink") or ""
