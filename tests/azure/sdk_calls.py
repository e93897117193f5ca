"""What a user of azure-ai-ml does, each a function of plain values; run in the process of ``sdk_worker``."""

from __future__ import annotations

import os
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.entities import (
    BuildContext,
    CodeConfiguration,
    Data,
    Environment,
    ManagedIdentityConfiguration,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
)
from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential, DefaultAzureCredential

SIZE = "Standard_NC40ads_H100_v5"
ROUTE = {"port": 8000, "path": "/health"}


@cache
def client() -> MLClient:
    return _client(DefaultAzureCredential())


def _client(credential: Any, workspace: str | None = None) -> MLClient:
    environment = os.environ
    names = (environment["SUBSCRIPTION_ID"], environment["RESOURCE_GROUP"], workspace or environment["WORKSPACE_NAME"])
    return MLClient(credential, *names, show_progress=False)


def _region(of: MLClient) -> str:
    found: Any = of.workspaces.get(of.workspace_name)
    return found.location


def region(workspace: str | None = None) -> str:
    return _region(_client(DefaultAzureCredential(), workspace))


def region_with_secret(secret: str) -> str:
    credential = ClientSecretCredential(os.environ["AZURE_TENANT_ID"], os.environ["AZURE_CLIENT_ID"], secret)
    return _region(_client(credential))


def region_few_retries() -> str:
    return _region(_few_retries())


def _few_retries() -> MLClient:
    names = (client().subscription_id, client().resource_group_name, client().workspace_name)
    return MLClient(DefaultAzureCredential(), *names, retry_total=2, retry_backoff_factor=0.01)


def usages() -> dict[str, tuple[int, int]]:
    """Used and allowed vCPUs by family; the SDK leaves ``current_value`` empty and keeps the answer's own name."""
    found: Any = client().compute.list_usage()
    return {usage.name["value"]: (vars(usage)["currentValue"], usage.limit) for usage in found}


def sizes() -> dict[str, int]:
    found: Any = client().compute.list_sizes()
    return {size.name: vars(size)["vCPUs"] for size in found}


def cluster(name: str) -> tuple[str, int]:
    found: Any = client().compute.get(name)
    return found.size, found.max_instances


def connection_key(name: str) -> str:
    return str(client().connections.get(name, populate_secrets=True).credentials.key)


def make_environment(name: str, folder: str) -> str:
    made = client().environments.create_or_update(Environment(name=name, version="1", build=BuildContext(path=folder)))
    return str(made.id)


def build_ahead(environment: str) -> tuple[str, str]:
    """Build through the data plane; status and log."""
    token = DefaultAzureCredential().get_token("https://ml.azure.com/.default").token
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as http:
        base = f"https://eastus.api.azureml.ms/environment/v2.0{_workspace_id()}"
        location = http.post(f"{base}/environments/{environment}/versions/1/image", json={}).json()["location"]
        while (answer := http.get(location)).status_code == 202:
            pass
        return answer.json()["status"], httpx.get(answer.json()["logUrl"]).text


def register_by_digest(name: str, content: str) -> tuple[str, bool]:
    """What ``stage=register`` has of a model: its version, and whether that is new."""
    from ftkit.platforms.azureml.assets import register

    made, new = register(_ftkits_workspace(), name, content, "0" * 64, {})
    return made.id, new


def _ftkits_workspace() -> Any:
    from ftkit.config.resolve import resolve
    from ftkit.platforms.azureml.workspace import Workspace

    log = Path(tempfile.mkdtemp(), "run", "azure.log")
    workspace = Workspace(resolve(["experiment=tiny-azure", "stage=publish"]).workspace, log)
    workspace.__dict__["client"] = _few_retries()
    return workspace


def publish_by_digest(name: str, content: str) -> tuple[str, bool]:
    """What ``stage=publish`` has of a data asset."""
    from ftkit.platforms.azureml.assets import publish

    made, new = publish(_ftkits_workspace(), name, Path(content), "0" * 64, {}, lambda line: None)
    return made.id, new


def follow_build(environment: str, limit_s: float) -> str:
    """What ftkit says of a build that it follows for so long at most."""
    from ftkit.errors import StageError
    from ftkit.platforms.azureml import environments

    environments.BUILD_LIMIT_S, said = limit_s, list[str]()
    try:
        environments.follow_build(
            _ftkits_workspace(), environments.Environment(environment, "1", new=True), said.append
        )
    except StageError as error:
        return error.what
    return "\n".join(said)


def _text(state: Any) -> str:
    """The SDK gives some states as enumerations, some as strings."""
    return str(getattr(state, "value", state))


def _workspace_id() -> str:
    found: Any = client().workspaces.get(client().workspace_name)
    return found.id


def make_data(name: str, version: str, path: str) -> str:
    made = client().data.create_or_update(Data(name=name, version=version, type="uri_file", path=path))
    return str(made.path)


def publish_and_tell(name: str, content: str, log: str) -> list[str]:
    """What a user is told while a data asset is sent, where each block is worth a line."""
    from ftkit import console
    from ftkit.config.resolve import resolve
    from ftkit.platforms.azureml.assets import publish
    from ftkit.platforms.azureml.workspace import Workspace

    console.COUNT_EVERY_S = -1.0
    said: list[str] = []
    workspace = Workspace(resolve(["experiment=tiny-azure", "stage=publish"]).workspace, Path(log))
    publish(workspace, name, Path(content), "0" * 64, {}, said.append)
    return said


def submit(code: str, line: str, settings: dict[str, Any]) -> str:
    """Submit a job that writes to ``${{outputs.made}}``; returns its name."""
    usual = {"environment": "azureml:test-env:1", "instance_type": SIZE, "experiment_name": "stand-in"}
    settings = {**usual, **settings}
    if data := settings.pop("data", None):
        settings["inputs"] = {"data": Input(type="uri_file", path=data)}
    if settings.pop("managed_identity", False):
        settings["identity"] = ManagedIdentityConfiguration()
    if settings.get("compute"):
        del settings["instance_type"]
    timeout = settings.pop("timeout", None)
    job: Any = command(
        code=code, command=line, outputs={"made": Output(type="uri_folder", mode="rw_mount")}, **settings
    )
    if timeout:
        job.set_limits(timeout=timeout)
    return str(client().jobs.create_or_update(job).name)


def stream(job: str) -> str:
    """Follow a job to its end; its status."""
    client().jobs.stream(job)
    while (reached := status(job)) == "CancelRequested":  # the log ends before the job does
        time.sleep(0.2)
    return reached


def status(job: str) -> str:
    return _text(client().jobs.get(job).status)


def cancel(job: str) -> None:
    client().jobs.begin_cancel(job).result()


def download(job: str, folder: str) -> list[str]:
    client().jobs.download(job, output_name="made", download_path=folder)
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def register(name: str, path: str) -> str:
    made = client().models.create_or_update(Model(name=name, path=path, type="custom_model", tags={"digest": "d"}))
    return str(made.path)


def model_path(name: str) -> str:
    return str(client().models.get(name, label="latest").path)


def make_endpoint(name: str, auth_mode: str = "key") -> str:
    endpoint = ManagedOnlineEndpoint(name=name, auth_mode=auth_mode)
    return str(client().online_endpoints.begin_create_or_update(endpoint).result().scoring_uri)


def deploy(endpoint: str, deployment: str, code: str) -> str:
    wanted = ManagedOnlineDeployment(
        name=deployment,
        endpoint_name=endpoint,
        model="azureml:test-model:1",
        environment="azureml:test-env:1",
        code_configuration=CodeConfiguration(code=code, scoring_script="score.py"),
        instance_type=SIZE,
        instance_count=1,
    )
    return _text(client().online_deployments.begin_create_or_update(wanted).result().provisioning_state)


def deploy_container(endpoint: str, deployment: str, image: str) -> str:
    routes = {"liveness_route": ROUTE, "readiness_route": ROUTE, "scoring_route": {"port": 8000, "path": "/v1"}}
    wanted = ManagedOnlineDeployment(
        name=deployment,
        endpoint_name=endpoint,
        model="azureml:test-model:1",
        environment=Environment(name="container", version="1", image=image, inference_config=routes),
        instance_type=SIZE,
        instance_count=1,
    )
    return _text(client().online_deployments.begin_create_or_update(wanted).result().provisioning_state)


def deployment_state(endpoint: str, deployment: str) -> str:
    return _text(client().online_deployments.get(deployment, endpoint).provisioning_state)


def container_log(endpoint: str, deployment: str) -> str:
    return client().online_deployments.get_logs(deployment, endpoint, lines=100)


def set_traffic(endpoint: str, traffic: dict[str, int], mirror: dict[str, int] | None = None) -> dict[str, int]:
    wanted = client().online_endpoints.get(endpoint)
    wanted.traffic, wanted.mirror_traffic = traffic, mirror or {}
    return dict(client().online_endpoints.begin_create_or_update(wanted).result().traffic)


def ask(endpoint: str, body: Any, deployment: str = "", path: str = "/score") -> tuple[int, str]:
    """Post to an endpoint with whatever credential it takes; status and text."""
    found = client().online_endpoints.get(endpoint)
    keys: Any = client().online_endpoints.get_keys(endpoint)
    headers = {"Authorization": f"Bearer {getattr(keys, 'primary_key', None) or keys.access_token}"}
    if deployment:
        headers["azureml-model-deployment"] = deployment
    uri = str(found.scoring_uri).removesuffix("/score") + path
    answer = httpx.post(uri, json=body, headers=headers, timeout=30)
    return answer.status_code, answer.text


def ask_with(endpoint: str, token: str) -> int:
    uri = str(client().online_endpoints.get(endpoint).scoring_uri)
    return httpx.post(uri, json={}, headers={"Authorization": f"Bearer {token}"}).status_code


def delete_deployment(endpoint: str, deployment: str) -> None:
    client().online_deployments.begin_delete(deployment, endpoint).result()


def delete_endpoint(endpoint: str) -> None:
    client().online_endpoints.begin_delete(endpoint).result()


def put_raw(path: str, api_version: str, body: Any) -> int:
    """PUT any body below the workspace; the status."""
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    uri = f"https://management.azure.com{_workspace_id()}/{path}?api-version={api_version}"
    return httpx.put(uri, json=body, headers={"Authorization": f"Bearer {token}"}).status_code


def error_code() -> str:
    """The code of the error that a look at the workspace meets."""
    try:
        client().workspaces.get(client().workspace_name)
    except HttpResponseError as error:
        return f"{error.status_code} {error.error.code if error.error else ''}"
    return ""


def visit(url: str) -> int:
    return httpx.get(url).status_code
