"""What ``MLClient`` and a blob container offer, on a ``Service``; and a workspace made of them."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from azure.core.exceptions import AzureError

from ftkit.config.schema import Workspace as Settings
from ftkit.platforms.azureml import datastore
from ftkit.platforms.azureml.errors import translated
from ftkit.platforms.azureml.workspace import Workspace
from quick import actors
from quick.service import WORKSPACE, Poller, Refused, Service

FAILURES = {
    "failed": "ResourceNotReady: the container did not get healthy.",
    "no room": "OutOfQuota: Not enough quota available for Standard_F4s_v2.",
}
"""What the service says of a deployment that does not start, by the kind of fault."""


class QuickWorkspace(Workspace):
    """A workspace whose client asks a ``Service``; before each question another command may have its turn."""

    def __init__(self, service: Service, user: str, folder: Path):
        settings = Settings(subscription_id="s", resource_group="g", workspace_name="w")
        super().__init__(settings, folder / "azure.log")
        self.service, self.user = service, user
        self.client: Any = Client(service, user)
        self.described: Any = SimpleNamespace(location="eastus", id=WORKSPACE, key_vault="/vaults/v")

    def token(self, scope: str = "") -> str:
        claims = base64.urlsafe_b64encode(json.dumps({"upn": f"{self.user}@example.com", "tid": "t"}).encode()).decode()
        return f"x.{claims.rstrip('=')}.x"

    @contextmanager
    def asking(self, to: str, resource: str) -> Iterator[None]:
        actors.point()
        try:
            yield
        except AzureError as error:
            raise translated(error, to, resource, self.settings, self.log) from error

    def sending(self, what, resource, say):
        return self.asking(what, resource)


class Client:
    """What ``MLClient`` offers."""

    def __init__(self, service: Service, user: str):
        self.jobs, self.online_endpoints = Jobs(service), OnlineEndpoints(service, user)
        self.online_deployments = OnlineDeployments(service, user)
        self.environments = SimpleNamespace(get=lambda name, version: None)
        found = SimpleNamespace(
            name="workspaceblobstore", protocol="https", account_name="a", endpoint="core.windows.net",
            container_name="c", credentials=SimpleNamespace(account_key="k"),
        )  # fmt: skip
        self.datastores = SimpleNamespace(get_default=lambda include_secrets: self._default(service, found))

    def _default(self, service: Service, found: Any) -> Any:
        with service.call("datastores.get_default"):
            return found


class Jobs:
    def __init__(self, service: Service):
        self._service = service

    def create_or_update(self, job: Any) -> Any:
        with self._service.call("jobs.create_or_update"):
            return self._service.start_job(job)
        raise AssertionError

    def get(self, name: str) -> Any:
        with self._service.call("jobs.get"):
            if name not in self._service.jobs:
                raise Refused(404, "Job not found.")
            return self._service.jobs[name]

    def list(self, tag: str) -> list[Any]:
        with self._service.call("jobs.list"):
            return [job for job in self._service.jobs.values() if tag in job.tags]

    def stream(self, name: str) -> None:
        """Until the job has ended; others have their turn meanwhile."""
        while (job := self._service.jobs[name]).status not in ("Completed", "Failed", "Canceled"):
            self._service.pause(60)
            with self._service.call("jobs.stream"):
                assert job

    def begin_cancel(self, name: str) -> Poller:
        job = self._service.jobs[name]
        with self._service.call("jobs.begin_cancel"):
            if job.status in ("Completed", "Failed", "Canceled"):
                raise Refused(400, "The job has ended.")
            job.status = "CancelRequested"

            def end() -> None:
                job.status = "Canceled"

            return self._service.begin("jobs.begin_cancel", "", "change", end)


class OnlineEndpoints:
    def __init__(self, service: Service, user: str):
        self._service, self._user = service, user

    def get(self, name: str) -> Any:
        with self._service.call("endpoints.get"):
            return self._service.copy(self._there(name))

    def list(self) -> list[Any]:
        with self._service.call("endpoints.list"):
            return [self._service.copy(found) for found in self._service.endpoints.values()]

    def get_keys(self, name: str) -> Any:
        with self._service.call("endpoints.get_keys"):
            return SimpleNamespace(primary_key="key")

    def begin_create_or_update(self, wanted: Any) -> Poller:
        service, name = self._service, wanted.name
        with service.call("endpoints.begin_create_or_update"):
            if service.busy_with(name):
                raise Refused(409, "Another operation on this resource is in progress.")
            traffic = {to: part for to, part in (wanted.traffic or {}).items() if part}
            for to in traffic:
                found = service.deployments.get((name, to))
                if found is None or found.provisioning_state != "Succeeded":
                    raise Refused(400, f"Traffic names the deployment {to}, which is not there.")
            if sum(traffic.values()) not in (0, 100):
                raise Refused(400, f"The traffic shares add up to {sum(traffic.values())}.")
            made = SimpleNamespace(
                name=name, tags=dict(wanted.tags or {}), traffic=traffic, auth_mode="key",
                mirror_traffic=dict(wanted.mirror_traffic or {}), provisioning_state="Updating",
                scoring_uri=f"https://{name}.eastus.inference.ml.azure.com/score",
            )  # fmt: skip
            service.endpoints[name] = made

            def end() -> None:
                made.provisioning_state = "Succeeded"

            return service.begin("endpoints.begin_create_or_update", name, "change", end)

    def begin_delete(self, name: str) -> Poller:
        service = self._service
        with service.call("endpoints.begin_delete"):
            if found := service.endpoints.get(name):  # as with deployments
                found.provisioning_state = "Deleting"

            def end() -> None:
                service.endpoints.pop(name, None)
                for key in [key for key in service.deployments if key[0] == name]:
                    _note(service, service.deployments.pop(key), name, self._user)

            return service.begin("endpoints.begin_delete", name, "change", end)

    def _there(self, name: str) -> Any:
        if name not in self._service.endpoints:
            raise Refused(404, "Endpoint not found.")
        return self._service.endpoints[name]


class OnlineDeployments:
    def __init__(self, service: Service, user: str):
        self._service, self._user = service, user

    def get(self, name: str, endpoint_name: str) -> Any:
        with self._service.call("deployments.get"):
            if (endpoint_name, name) not in self._service.deployments:
                raise Refused(404, "Deployment not found.")
            return self._service.copy(self._service.deployments[endpoint_name, name])

    def list(self, endpoint_name: str) -> list[Any]:
        with self._service.call("deployments.list"):
            found = self._service.deployments.items()
            return [self._service.copy(each) for (endpoint, _), each in found if endpoint == endpoint_name]

    def get_logs(self, name: str, endpoint_name: str, lines: int, container_type: str = "") -> str:
        with self._service.call("deployments.get_logs"):
            return ""

    def begin_create_or_update(self, wanted: Any) -> Poller:
        service, endpoint = self._service, wanted.endpoint_name
        with service.call("deployments.begin_create_or_update"):
            if endpoint not in service.endpoints:
                raise Refused(404, "Endpoint not found.")
            if service.busy_with(endpoint):
                raise Refused(409, "Another operation on this resource is in progress.")
            made = SimpleNamespace(
                name=wanted.name, tags=dict(wanted.tags), provisioning_state="Creating",
                instance_type=wanted.instance_type, instance_count=wanted.instance_count,
            )  # fmt: skip
            service.deployments[endpoint, wanted.name] = made
            failure = next((says for kind, says in FAILURES.items() if service._fault("deployments.start", kind)), "")

            def end() -> None:
                made.provisioning_state = "Failed" if failure else "Succeeded"

            return service.begin("deployments.begin_create_or_update", endpoint, "deployment", end, failure)

    def begin_delete(self, name: str, endpoint_name: str) -> Poller:
        service = self._service
        with service.call("deployments.begin_delete"):
            if service.busy_with(endpoint_name):
                raise Refused(409, "Another operation on this resource is in progress.")
            endpoint = service.endpoints.get(endpoint_name)
            if endpoint and (endpoint.traffic.get(name) or endpoint.mirror_traffic.get(name)):
                raise Refused(400, f"The deployment {name} has traffic, or copies of it.")
            if found := service.deployments.get((endpoint_name, name)):  # the service answers 204 where there is none
                found.provisioning_state = "Deleting"

            def end() -> None:
                if gone := service.deployments.pop((endpoint_name, name), None):
                    _note(service, gone, endpoint_name, self._user)

            return service.begin("deployments.begin_delete", endpoint_name, "change", end)


def _note(service: Service, gone: Any, endpoint: str, by: str) -> None:
    service.deleted.append((by, endpoint, gone.name, gone.tags))


class Container:
    """Stands for ``ContainerClient``."""

    def __init__(self, service: Service):
        self._service = service

    def list_blobs(self, name_starts_with: str) -> list[Any]:
        with self._service.call("blobs.list"):
            return [
                SimpleNamespace(name=name, size=len(content))
                for name, content in self._service.blobs.items()
                if name.startswith(name_starts_with)
            ]

    def download_blob(self, name: str) -> Any:
        with self._service.call("blobs.read"):
            return SimpleNamespace(readall=lambda: self._service.blobs[name])

    def get_blob_client(self, path: str) -> Blob:
        return Blob(self._service, path)


class Blob:
    """Stands for ``BlobClient``: what a claim needs of it."""

    def __init__(self, service: Service, path: str):
        self._service, self._path = service, path

    def exists(self) -> bool:
        return self._path in self._service.blobs

    def upload_blob(self, content: bytes, overwrite: bool) -> None:
        with self._service.call("blobs.write"):
            self._service.blobs.setdefault(self._path, content)

    def acquire_lease(self, seconds: int, lease_id: str) -> Any:
        service, path = self._service, self._path
        with service.call("blobs.lease"):
            if service.lease_holder(path) not in (None, lease_id):
                raise Refused(409, "There is already a lease present.")
            service.leases[path] = (lease_id, actors.present(), service.now)
        return SimpleNamespace(id=lease_id, renew=lambda: None, release=lambda: self._release(lease_id))

    def _release(self, lease: str) -> None:
        if (actor := actors.present()) and actor.dead:
            raise actors.Killed
        if self._service.lease_holder(self._path) == lease:
            del self._service.leases[self._path]

    def set_blob_metadata(self, metadata: dict[str, str], lease: Any) -> None:
        self._service.metadata[self._path] = metadata

    def get_blob_properties(self) -> Any:
        return SimpleNamespace(metadata=self._service.metadata.get(self._path, {}))


def install(service: Service, monkeypatch: Any) -> None:
    """Lead ftkit to the service: blobs, time, prices and answers of endpoints are its own."""
    from ftkit.platforms.azureml import arm, changes, jobs, smoke, submission

    monkeypatch.setattr(datastore, "ContainerClient", lambda *_, **__: Container(service))
    monkeypatch.setattr(changes, "now", lambda: service.now)
    monkeypatch.setattr(changes, "pause", service.pause)
    monkeypatch.setattr(arm, "send", lambda workspace, doing, *request: _arm(service, workspace, doing, *request))
    monkeypatch.setattr(smoke, "ask", lambda uri, payload, **how: _answer(service, uri, how["headers"]))

    @contextmanager
    def no_snapshot(config: Any) -> Iterator[Path]:
        yield Path()

    monkeypatch.setattr(jobs, "snapshot", no_snapshot)
    assert submission


def _arm(
    service: Service, workspace: QuickWorkspace, doing: tuple[str, str], method: str, address: str, body: Any = None
) -> dict[str, Any]:
    """Resource Manager: VM sizes, and autoscale settings as the service keeps them."""
    kind, _, name = address.partition("?")[0].partition("/providers/")[2].partition("/")[2].partition("/")
    if kind == "locations":
        return {"value": [_SIZE] if name.endswith("vmSizes") else service.usages}
    with workspace.asking(*doing), service.call(f"autoscale.{method.lower()}"):
        if method == "PUT":
            service.scaled[name] = {**body, "name": name}
        elif not name:
            return {"value": [service.copy(setting) for setting in service.scaled.values()]}
        elif name not in service.scaled:
            raise Refused(404, "Setting not found.")
        elif method == "DELETE":
            del service.scaled[name]
            return {}
        return service.copy(service.scaled[name])
    raise AssertionError


_SIZE = {
    "name": "Standard_F4s_v2", "family": "f", "vCPUs": 4,
    "estimatedVmPrices": {"values": [{"retailPrice": 0.17, "osType": "Linux", "vmTier": "Standard"}]},
}  # fmt: skip


def _answer(service: Service, uri: str, headers: dict[str, str]) -> dict[str, Any]:
    from ftkit.serving.client import Busy, NotAnswering

    actors.point()
    service.settle()
    name = uri.partition("//")[2].partition(".")[0]
    endpoint = service.endpoints.get(name)
    shares = endpoint.traffic if endpoint else {}
    chosen = headers.get("azureml-model-deployment") or max(shares, key=lambda to: shares[to], default="")
    if (name, chosen) not in service.deployments:
        raise NotAnswering("nothing behind the endpoint takes requests")
    if chosen in service.busy:
        raise Busy("the endpoint is busy")
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return {"output": f"{uuid.uuid4()}", "thinking": "", "finish_reason": "stop", "usage": usage}
