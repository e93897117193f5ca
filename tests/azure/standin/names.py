"""Names of the one subscription, workspace and storage account that the stand-in knows."""

from __future__ import annotations

import base64

TENANT = "11111111-1111-1111-1111-111111111111"
CLIENT = "22222222-2222-2222-2222-222222222222"
SECRET = "standin-client-secret"
COLLEAGUE = "33333333-3333-3333-3333-333333333333"
SECRETS = {CLIENT: SECRET, COLLEAGUE: "standin-colleagues-secret"}
"""By service principal."""
SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
RESOURCE_GROUP = "rg-test"
WORKSPACE = "ws-test"
REGION = "eastus"

GROUP_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}"
WORKSPACE_ID = f"{GROUP_ID}/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}"
LOCATION_ID = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices/locations/{{location}}"

ARM = "management.azure.com"
LOGIN = "login.microsoftonline.com"
DATA_PLANE = f"{REGION}.api.azureml.ms"
SCORING_SUFFIX = f".{REGION}.inference.ml.azure.com"
VAULT = "kvftkit"
VAULT_HOST = f"{VAULT}.vault.azure.net"

ACCOUNT = "ftkitstore"
ACCOUNT_KEY = base64.b64encode(b"k" * 64).decode()
ACCOUNT_ID = f"{GROUP_ID}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
BLOB_HOST = f"{ACCOUNT}.blob.core.windows.net"
CONTAINER = "azureml-blobstore-test"
DATASTORE = "workspaceblobstore"

EXACT_HOSTS = (ARM, LOGIN, DATA_PLANE, VAULT_HOST, BLOB_HOST)


def known_host(host: str) -> bool:
    """Whether a client may speak to this host at all."""
    return host in EXACT_HOSTS or (host.endswith(SCORING_SUFFIX) and "." not in host.removesuffix(SCORING_SUFFIX))
