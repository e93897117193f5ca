"""The workspace itself: its description, compute clusters, datastore, connections and key vault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from standin import entra, names
from standin.resources import Resources
from standin.store import BlobStore
from standin.web import Request, Response, Router, ServiceError, answer

VAULT_AUDIENCE = "https://vault.azure.net"


class Cluster(NamedTuple):
    """A compute cluster that exists."""

    size: str
    nodes: int
    spot: bool = False


CLUSTERS = {
    "gpu-cluster": Cluster("Standard_NC40ads_H100_v5", 2),
    "spot-cluster": Cluster("Standard_NC40ads_H100_v5", 2, True),
}


class Workspace:
    """What exists before the first command.

    Attributes:
        clusters: compute clusters by name.
        secrets: what the workspace's key vault holds, by name.
        connections: API keys of the workspace's connections, by name.
        identity_based: whether the datastore gives out no keys, so that clients have to use their own identity.
    """

    def __init__(self, resources: Resources, store: BlobStore):
        self._resources, self._store = resources, store
        self.clusters: dict[str, Cluster] = dict(CLUSTERS)
        self.secrets: dict[str, str] = {}
        self.connections: dict[str, str] = {}
        self.identity_based = False

    def routes(self, router: Router) -> None:
        workspace = names.WORKSPACE_ID
        router.add("GET", workspace, lambda request: answer(self._shown()))
        router.add("GET", f"{workspace}/computes", self._computes)
        router.add("GET", f"{workspace}/computes/{{name}}", self._compute)
        router.add("GET", f"{workspace}/datastores", lambda request: answer({"value": [self._datastore()]}))
        router.add("GET", f"{workspace}/datastores/{{name}}", self._named_datastore)
        router.add("POST", f"{workspace}/datastores/{{name}}/listSecrets", self._datastore_secrets)
        router.add("GET", f"{workspace}/connections", self._connections)
        router.add("GET", f"{workspace}/connections/{{name}}", self._connection)
        router.add("POST", f"{workspace}/connections/{{name}}/listsecrets", self._connection_secrets)

    def vault_routes(self, router: Router) -> None:
        router.add("GET", "/secrets/{name}", self._secret)
        router.add("GET", "/secrets/{name}/{version}", self._secret)
        router.add("GET", "/secrets/{name}/", self._secret)

    def reset(self) -> None:
        self.clusters, self.identity_based = dict(CLUSTERS), False
        self.secrets, self.connections = {}, {}

    def cluster(self, identifier: str) -> Cluster:
        """A cluster by its ARM id or name.

        Raises:
            ServiceError: there is none.
        """
        name = identifier.rpartition("/")[2]
        if name not in self.clusters:
            raise ServiceError(404, "ComputeNotFound", f"The compute {name} was not found in {names.WORKSPACE}.")
        return self.clusters[name]

    def _shown(self) -> dict[str, Any]:
        return {
            "id": names.WORKSPACE_ID,
            "name": names.WORKSPACE,
            "type": "Microsoft.MachineLearningServices/workspaces",
            "location": names.REGION,
            "kind": "Default",
            "sku": {"name": "Basic", "tier": "Basic"},
            "identity": {"type": "SystemAssigned", "principalId": names.CLIENT, "tenantId": names.TENANT},
            "properties": {
                "workspaceId": "w-1",
                "friendlyName": names.WORKSPACE,
                "provisioningState": "Succeeded",
                "publicNetworkAccess": "Enabled",
                "discoveryUrl": f"https://{names.DATA_PLANE}/discovery",
                "mlFlowTrackingUri": f"azureml://{names.DATA_PLANE}/mlflow/v1.0{names.WORKSPACE_ID}",
                "storageAccount": names.ACCOUNT_ID,
                "keyVault": f"{names.GROUP_ID}/providers/Microsoft.KeyVault/vaults/{names.VAULT}",
                "tenantId": names.TENANT,
            },
        }

    def _computes(self, request: Request) -> Response:
        return answer({"value": [_shown_cluster(name, cluster) for name, cluster in self.clusters.items()]})

    def _compute(self, request: Request, name: str) -> Response:
        return answer(_shown_cluster(name, self.cluster(name)))

    def _datastore(self) -> Mapping[str, Any]:
        return {
            "id": f"{names.WORKSPACE_ID}/datastores/{names.DATASTORE}",
            "name": names.DATASTORE,
            "type": "Microsoft.MachineLearningServices/workspaces/datastores",
            "properties": {
                "datastoreType": "AzureBlob",
                "accountName": names.ACCOUNT,
                "containerName": names.CONTAINER,
                "endpoint": "core.windows.net",
                "protocol": "https",
                "isDefault": True,
                "serviceDataAccessAuthIdentity": "WorkspaceSystemAssignedIdentity",
                "credentials": {"credentialsType": "None" if self.identity_based else "AccountKey"},
            },
        }

    def _named_datastore(self, request: Request, name: str) -> Response:
        if name != names.DATASTORE:
            raise ServiceError(404, "ResourceNotFound", f"Could not find datastore: {name}")
        return answer(self._datastore())

    def _datastore_secrets(self, request: Request, name: str) -> Response:
        if self.identity_based:
            raise ServiceError(400, "UserError", "The datastore has no credentials.")
        if request.json.get("expirableSecret"):
            return answer({"secretsType": "Sas", "sasToken": self._store.container_sas(names.CONTAINER)})
        return answer({"secretsType": "AccountKey", "key": names.ACCOUNT_KEY})

    def _connections(self, request: Request) -> Response:
        return answer({"value": [self._shown_connection(name) for name in self.connections]})

    def _connection(self, request: Request, name: str) -> Response:
        return answer(self._shown_connection(name))

    def _connection_secrets(self, request: Request, name: str) -> Response:
        shown = self._shown_connection(name)
        shown["properties"]["credentials"] = {"key": self.connections[name]}
        return answer(shown)

    def _shown_connection(self, name: str) -> dict[str, Any]:
        if name not in self.connections:
            raise ServiceError(404, "ResourceNotFound", f"The connection {name} was not found.")
        return {
            "id": f"{names.WORKSPACE_ID}/connections/{name}",
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/connections",
            "properties": {
                "authType": "ApiKey",
                "category": "ApiKey",
                "target": "https://huggingface.co",
                "isSharedToAll": True,
                "metadata": {},
                "credentials": None,
            },
        }

    def _secret(self, request: Request, name: str, version: str = "") -> Response:
        if entra.token_audience(request) != VAULT_AUDIENCE:
            challenge = (
                f'Bearer authorization="https://{names.LOGIN}/{names.TENANT}", resource="https://vault.azure.net"'
            )
            raise ServiceError(
                401, "Unauthorized", "AKV10000: Request is missing a token.", {"WWW-Authenticate": challenge}
            )
        if name not in self.secrets:
            raise ServiceError(
                404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault."
            )
        identifier = f"https://{names.VAULT_HOST}/secrets/{name}/1"
        return answer({"value": self.secrets[name], "id": identifier, "attributes": {"enabled": True}})


def _shown_cluster(name: str, cluster: Cluster) -> dict[str, Any]:
    return {
        "id": f"{names.WORKSPACE_ID}/computes/{name}",
        "name": name,
        "location": names.REGION,
        "type": "Microsoft.MachineLearningServices/workspaces/computes",
        "properties": {
            "computeType": "AmlCompute",
            "provisioningState": "Succeeded",
            "computeLocation": names.REGION,
            "properties": {
                "vmSize": cluster.size,
                "vmPriority": "LowPriority" if cluster.spot else "Dedicated",
                "allocationState": "Steady",
                "currentNodeCount": 0,
                "scaleSettings": {
                    "minNodeCount": 0,
                    "maxNodeCount": cluster.nodes,
                    "nodeIdleTimeBeforeScaleDown": "PT120S",
                },
            },
        },
    }
