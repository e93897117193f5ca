"""What a process inside a job has to see to: which job that is, and the model hub's token, which no job carries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ftkit.config.schema import Config, Secrets, Workspace
from ftkit.errors import StageError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

ARM = "https://management.azure.com"
API_VERSION = "2024-10-01"


def own_job() -> str:
    """Name of the job that this process belongs to; empty outside of one."""
    return os.environ.get("AZUREML_RUN_ID", "")


def read_hub_token(config: Config) -> None:
    """Read the token that ``secrets`` names, by the job's managed identity, into this process alone.

    Raises:
        StageError: it is not there, or the identity may not read it.
    """
    secrets = config.secrets
    if "HF_TOKEN" in os.environ or not (secrets.hf_token or secrets.hf_connection):
        return
    from azure.core.exceptions import AzureError
    from azure.identity import ManagedIdentityCredential
    from httpx import HTTPError

    identity = ManagedIdentityCredential(client_id=os.environ.get("DEFAULT_IDENTITY_CLIENT_ID"))
    try:
        found = _of_vault(secrets, identity) if secrets.hf_token else _of_connection(config, identity)
    except (AzureError, HTTPError) as error:
        name, place = (
            (f"secret {secrets.hf_token}", f"key vault {secrets.key_vault}")
            if secrets.hf_token
            else (f"connection {secrets.hf_connection}", f"workspace {config.workspace.workspace_name}")
        )
        raise StageError(
            f"the {name} cannot be read: {str(error).splitlines()[0]}",
            where=place,
            cure="make it, and give the job's identity its role; README, On Azure",
        ) from error
    os.environ["HF_TOKEN"] = found


def _of_vault(secrets: Secrets, identity: TokenCredential) -> str:
    from azure.keyvault.secrets import SecretClient

    client = SecretClient(f"https://{secrets.key_vault}.vault.azure.net", identity)
    return client.get_secret(str(secrets.hf_token)).value or ""


def _of_connection(config: Config, identity: TokenCredential) -> str:
    import httpx

    token = identity.get_token(f"{ARM}/.default").token
    address = f"{ARM}{_id_of(config.workspace)}/connections/{config.secrets.hf_connection}/listsecrets"
    answer = httpx.post(
        address, params={"api-version": API_VERSION}, headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    return answer.raise_for_status().json()["properties"]["credentials"]["key"]


def _id_of(workspace: Workspace) -> str:
    group = f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}"
    return f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{workspace.workspace_name}"
