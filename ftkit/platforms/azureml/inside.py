"""What a process inside a job has to see to: which rank it is, and the model hub's token from the key vault."""

from __future__ import annotations

import os

from ftkit.config.schema import Config
from ftkit.errors import StageError


def first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def hub_token_from_vault(config: Config) -> None:
    """Read the token by the job's managed identity into this process alone.

    Raises:
        StageError: the vault does not have it, or the identity may not read it.
    """
    secret, vault = config.secrets.hf_token, config.secrets.key_vault
    if secret is None or "HF_TOKEN" in os.environ:
        return
    from azure.core.exceptions import AzureError
    from azure.identity import ManagedIdentityCredential
    from azure.keyvault.secrets import SecretClient

    address = f"https://{vault}.vault.azure.net"
    try:
        client = SecretClient(
            address, ManagedIdentityCredential(client_id=os.environ.get("DEFAULT_IDENTITY_CLIENT_ID"))
        )
        found = client.get_secret(secret).value
    except AzureError as error:
        raise StageError(
            f"the secret {secret} cannot be read: {str(error).splitlines()[0]}",
            where=address,
            cure="az keyvault secret set, and the role Key Vault Secrets User for the job's identity; README, On Azure",
        ) from error
    os.environ["HF_TOKEN"] = found or ""
