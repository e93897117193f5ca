"""The stand-in for Azure put together: what answers at which host, and what tests hold on to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from standin import entra, names, pki, schemas
from standin.assets import Assets
from standin.azurite import Azurite
from standin.endpoints import Endpoints
from standin.faults import Faults
from standin.gateway import Gateway
from standin.history import History
from standin.images import Images
from standin.jobs import Jobs
from standin.managed_identity import ManagedIdentity
from standin.mlflow import Tracking
from standin.monitor import Monitor
from standin.proxy import ConnectProxy
from standin.quota import Quota
from standin.record import Record
from standin.resources import Operations, Resources
from standin.serving import Serving
from standin.store import BlobStore
from standin.web import Request, Response, Router, ServiceError, TlsServer
from standin.workspace import Workspace


class StandIn:
    """Azure, on this machine.

    Attributes:
        environment: what a client's process needs in its environment, and all it needs.
        python: the virtual environment whose ``bin`` jobs and deployments run from; that of the tests at first.
        faults: what shall go wrong; ended before each test.
        record: what clients sent; cleared before each test.
        violations: bodies that broke Microsoft's schema; a test with any fails.
        workspace, quota: what exists before the first command, for a test to change.
        resources, store: what clients have made: resources by path, and blobs.
        jobs, images, serving, tracking: what runs and ran, and what was logged of it.
        monitor: autoscale settings.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = Path(sys.prefix)
        self.faults, self.record = Faults(), Record()
        self.violations: list[str] = []
        keys = pki.make(folder / "pki")
        self._authority = keys.bundle
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._start(stack, keys)
            self._stack = stack.pop_all()

    def _start(self, stack: ExitStack, keys: pki.Pki) -> None:
        self.azurite = Azurite(keys)
        stack.callback(self.azurite.stop)
        self.identity = ManagedIdentity()
        self.store, self.resources, self.quota = BlobStore(self.azurite, keys), Resources(), Quota()
        self.workspace = Workspace(self.resources, self.store)
        self.images = Images(self.resources, self.store, self.faults)
        self.jobs = Jobs(self, self.resources, self.folder / "jobs")
        self.tracking = Tracking(self.jobs)
        self.serving = Serving(self, self.folder / "deployments")
        operations = Operations()
        self.monitor = Monitor(self.resources)
        self.endpoints = Endpoints(self.resources, operations, self.serving, self.quota)
        self._gateway = Gateway(self.resources, self.endpoints, self.serving, self.faults)
        self._sites = self._routed(operations)
        self._server = TlsServer(self, keys.certificate, keys.key)
        self.proxy = ConnectProxy(self._server.address)
        for server in (self.identity, self._server, self.proxy):
            server.start()
            stack.callback(server.stop)
        stack.callback(self.wipe)

    def _routed(self, operations: Operations) -> dict[str, Callable[[Request], Response]]:
        arm, data_plane, login, vault = Router(), Router(), Router(), Router()
        entra.routes(login)
        assets = Assets(self.resources, self.store)
        for part in (self.workspace, self.quota, assets, self.jobs, self.endpoints, self.monitor, operations):
            part.routes(arm)
        for part in (History(self.jobs, self.resources), self.tracking, self.images):
            part.routes(data_plane)
        self.workspace.vault_routes(vault)
        return {
            names.LOGIN: login,
            names.ARM: self._checked(arm),
            names.DATA_PLANE: self._authenticated(data_plane),
            names.VAULT_HOST: vault,
            names.BLOB_HOST: self.azurite.forward,
        }

    @property
    def network(self) -> dict[str, str]:
        """Leads every client through the proxy, and makes it trust the stand-in's certificate."""
        proxied = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), self.proxy.url)
        trusted = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"), str(self._authority))
        return {**proxied, **trusted, "NO_PROXY": "127.0.0.1,localhost"}

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.network,
            "AZURE_TENANT_ID": names.TENANT,
            "AZURE_CLIENT_ID": names.CLIENT,
            "AZURE_CLIENT_SECRET": names.SECRET,
            "SUBSCRIPTION_ID": names.SUBSCRIPTION,
            "RESOURCE_GROUP": names.RESOURCE_GROUP,
            "WORKSPACE_NAME": names.WORKSPACE,
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",
            "AZUREML_RUN_POLLING_INTERVAL_MAX": "1",
        }

    # What the server asks.

    def meet(self, head: Request) -> Callable[[Request], Response]:
        site = self._gateway if head.host.endswith(names.SCORING_SUFFIX) else self._sites.get(head.host, _nobody)
        if (fault := self.faults.of_request(head)) is None:
            return lambda request: self._recorded(request, site)
        if fault.response is None:
            self.record.add(head, 0, fault.name)
        response = fault.meet(head)

        def answered(request: Request) -> Response:
            if fault.lost:
                site(request)
            return response

        return lambda request: self._recorded(request, answered, fault.name)

    def _recorded(self, request: Request, site: Callable[[Request], Response], fault: str = "") -> Response:
        status = 500
        try:
            response = site(request)
            status = response.status
            return response
        except ServiceError as error:
            status = error.status
            raise
        finally:
            self.record.add(request, status, fault)

    def _authenticated(self, router: Router) -> Router:
        def site(request: Request) -> Response:
            if request.path != "/discovery":
                entra.require(request, *entra.ARM_AUDIENCES, entra.ML_AUDIENCE)
            return router(request)

        return site

    def _checked(self, router: Router) -> Callable[[Request], Response]:
        def site(request: Request) -> Response:
            entra.require(request, *entra.ARM_AUDIENCES)
            _check_scope(request.path)
            if request.method == "PUT" and request.path.lower().startswith(f"{names.WORKSPACE_ID}/".lower()):
                self._check_schema(request)  # of others, whoever answers sees to that
            return router(request)

        return site

    def _check_schema(self, request: Request) -> None:
        """Raises ServiceError: the body breaks the schema of its api-version."""
        parts = request.path[len(names.WORKSPACE_ID) :].strip("/").split("/")
        try:
            found = schemas.problems(request.api_version, parts[0::2], parts[-1], request.json)
        except schemas.UnknownVersion as error:
            found = [str(error)]
        if found:
            place = f"PUT {'/'.join(parts)} ({request.api_version})"
            self.violations += [f"{place}: {problem}" for problem in found]
            raise ServiceError(400, "ValidationError", f"{place}: {'; '.join(found)}")

    # What tests ask.

    def costing(self) -> list[str]:
        """Jobs and deployments that cost money at this moment."""
        return [f"job {name}" for name in self.jobs.running()] + [
            f"deployment {name}" for name in self.endpoints.running()
        ]

    def reset(self) -> None:
        """End all faults, undo changes to what existed at first, and forget what was recorded; what was made stays."""
        self.faults.clear()
        self.record.clear()
        self.violations.clear()
        self.proxy.refused.clear()
        self.quota.reset()
        self.workspace.reset()
        self.serving.containers.clear()

    def wipe(self) -> None:
        """Delete all that clients have made: jobs, endpoints, assets and images; blobs stay."""
        self.endpoints.clear()
        self.monitor.settings.clear()
        self.jobs.stop()
        self.images.clear()
        self.tracking.clear()
        self.resources.clear()

    def verify(self) -> None:
        """Raises AssertionError: a client spoke to a host that is not Azure's, or broke a schema."""
        assert not self.proxy.refused, f"hosts that no client should speak to: {sorted(set(self.proxy.refused))}"
        assert not self.violations, "bodies that break Microsoft's schema:\n" + "\n".join(self.violations)

    def stop(self) -> None:
        """End everything that was started; safe to call more than once."""
        self._stack.close()


def _check_scope(path: str) -> None:
    """Raises ServiceError: the subscription, resource group or workspace does not exist."""
    parts = path.strip("/").split("/")
    named = dict(zip((part.lower() for part in parts[0::2]), parts[1::2], strict=False))
    if (subscription := named.get("subscriptions", names.SUBSCRIPTION)) != names.SUBSCRIPTION:
        raise ServiceError(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
    group, workspace = named.get("resourcegroups"), named.get("workspaces")
    if group and group.lower() != names.RESOURCE_GROUP:
        raise ServiceError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
    if workspace and workspace.lower() != names.WORKSPACE:
        raise ServiceError(
            404,
            "ResourceNotFound",
            f"The Resource 'Microsoft.MachineLearningServices/workspaces/{workspace}' under resource group "
            f"'{group}' was not found.",
        )


def _nobody(request: Request) -> Response:
    raise ServiceError(404, "NotFound", f"nobody answers at {request.host}")
