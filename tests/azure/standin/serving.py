"""Runs deployments: Azure ML's own inference server, or a process in a custom container's stead, on loopback."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standin import machines
from standin.assets import content_uri
from standin.job_run import Site
from standin.quota import Quota
from standin.store import empty
from standin.web import ServiceError

HEALTHY_WITHIN_SECONDS = 120
LOOK_SECONDS = 0.1
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NOT_READY = "User container has crashed or terminated. Please see troubleshooting guide, available here: https://aka.ms/oe-tsg#error-resourcenotready"


@dataclass
class Server:
    """A deployment's machines.

    Attributes:
        port: where it answers on 127.0.0.1, 0 before it does.
        size, count: of the VMs that it holds.
        answered: requests that came from traffic, ``mirrored`` those that were copied to it.
    """

    size: str
    count: int
    log: Path = Path("/dev/null")
    port: int = 0
    process: machines.Process | None = None
    answered: int = 0
    mirrored: int = 0
    stopping: threading.Event = field(default_factory=threading.Event, repr=False)


class Serving:
    """All servers by endpoint and deployment.

    Attributes:
        containers: for custom containers, the command that stands for an image, by the image's name without its tag;
            ``{port}`` and ``{model}`` in it are filled in. An image that is not listed is recorded, and never answers.
        python: the environment that inference servers run in.
    """

    def __init__(self, site: Site, folder: Path):
        self._site, self._folder = site, folder
        self.containers: dict[str, list[str]] = {}
        self._servers: dict[tuple[str, str], Server] = {}
        self._lock = threading.Lock()

    def find(self, endpoint: str, deployment: str) -> Server | None:
        return self._servers.get((endpoint, deployment))

    def hold(self, endpoint: str, deployment: str, size: str, count: int) -> None:
        with self._lock:
            self._servers[endpoint, deployment] = Server(size, count)

    def release(self, endpoint: str, deployment: str, quota: Quota) -> None:
        """Stop a deployment's server and give its VMs back, if it has any."""
        with self._lock:
            server = self._servers.pop((endpoint, deployment), None)
        if server:
            server.stopping.set()
            if server.process:
                machines.stop([server.process], grace=5)
            quota.release(server.size, server.count)

    def log(self, endpoint: str, deployment: str, container: str, lines: int) -> str:
        server = self._servers.get((endpoint, deployment))
        if server is None or container != "InferenceServer":
            return "" if server is None else "Model and code were downloaded."
        return machines.tail(server.log, lines)

    def start(self, endpoint: str, deployment: str, properties: Mapping[str, Any]) -> None:
        """Build the image, fetch code and model, start the server and wait until it is healthy.

        Raises:
            ServiceError: the build failed, the server ended, or it did not get healthy in time.
        """
        server = self._servers[endpoint, deployment]
        environment = self._site.resources.by_id(properties["environmentId"])
        self._ensure_image(environment)
        folder = empty(self._folder / f"{endpoint}-{deployment}")
        server.log = folder / "container.log"
        model = self._fetch_model(properties, folder)
        if self._site.faults.of_event("health"):
            raise ServiceError(400, "ResourceNotReady", f"Liveness probe failed: timed out. {NOT_READY}")
        port = machines.free_port()
        if properties.get("codeConfiguration"):
            command, cwd, health = self._inference_server(properties, folder, model, port), folder / "code", "/"
        else:
            command, cwd, health = self._container(environment, model, port), folder, _liveness_route(environment)
        if not command:
            return
        server.process = machines.Process(command, cwd, self._environment(properties, folder, model), server.log)
        self._await_health(server, f"http://127.0.0.1:{port}{health}")
        server.port = port

    def _ensure_image(self, environment: Mapping[str, Any]) -> None:
        try:
            self._site.images.ensure(dict(environment))
        except ServiceError as error:
            raise ServiceError(
                400,
                "EnvironmentBuildFailure" if not error.message else "ResourceNotFound",
                "Deployment failed due to no Environment Image available. Check Environment Build Log in Workspace. "
                f"Environment info: Name: {environment['name']}. {error.message}",
            ) from error

    def _fetch_model(self, properties: Mapping[str, Any], folder: Path) -> Path:
        """The folder that AZUREML_MODEL_DIR names; the model's own folder is in it."""
        if not properties.get("model"):
            return folder
        asset = self._site.resources.by_id(properties["model"])
        name, version = asset["id"].split("/")[-3], asset["name"]
        root = folder / "azureml-models" / name / version
        fault = self._site.faults.of_event("init")
        if fault and not fault.detail:
            return empty(root)
        self._site.store.fetch(content_uri(asset), root)
        for path in [*root.rglob(fault.detail)] if fault else ():
            path.unlink()
        return root

    def _inference_server(self, properties: Mapping[str, Any], folder: Path, model: Path, port: int) -> list[str]:
        code = properties["codeConfiguration"]
        fetched = self._site.store.fetch(content_uri(self._site.resources.by_id(code["codeId"])), folder / "fetched")
        fetched.rename(folder / "code")
        script = folder / "code" / code["scoringScript"]
        if not script.is_file():
            raise ServiceError(400, "BadArgument", f"The scoring script {code['scoringScript']} is not in the code.")
        server = self._site.python / "bin" / "azmlinfsrv"
        return [*(str(server), "--entry_script", str(script)), *("--model_dir", str(model), "--port", str(port)),
                *("--health_port", str(machines.free_port()))]  # fmt: skip

    def _container(self, environment: Mapping[str, Any], model: Path, port: int) -> list[str]:
        properties = environment["properties"]
        image = str(properties.get("image") or self._site.images.base_of(environment)).rpartition(":")[0]
        return [part.format(port=port, model=model) for part in self.containers.get(image, [])]

    def _environment(self, properties: Mapping[str, Any], folder: Path, model: Path) -> dict[str, str]:
        own = {"AZUREML_MODEL_DIR": str(model), "AML_APP_ROOT": str(folder / "code"), "TMPDIR": str(folder)}
        base = machines.base_environment(folder, self._site.python)
        return {**base, **self._site.network, **own, **(properties.get("environmentVariables") or {})}

    def _await_health(self, server: Server, url: str) -> None:
        """Raises ServiceError: the server ended, was deleted, or is still not healthy after two minutes."""
        assert server.process
        for _ in range(int(HEALTHY_WITHIN_SECONDS / LOOK_SECONDS)):
            if server.process.status is not None:
                raise ServiceError(400, "ResourceNotReady", NOT_READY)
            try:
                with NO_PROXY.open(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if server.stopping.wait(LOOK_SECONDS):
                    raise ServiceError(409, "Conflict", "The deployment was deleted while it started.") from None
        machines.stop([server.process], grace=5)
        raise ServiceError(400, "ResourceNotReady", f"Liveness probe failed. {NOT_READY}")


def _liveness_route(environment: Mapping[str, Any]) -> str:
    routes = environment["properties"].get("inferenceConfig") or {}
    return os.fspath((routes.get("livenessRoute") or {}).get("path", "/"))
