"""Image builds of environments: each has a log, takes a moment, and may be made to fail."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from standin import names
from standin.faults import Faults
from standin.resources import Resource, Resources
from standin.store import BlobStore
from standin.web import Request, Response, Router, ServiceError, answer

SECONDS_A_STEP = 0.1


class Build:
    """One build: its log so far, and how it ended."""

    def __init__(self, identifier: str):
        self.identifier = identifier
        self.lines: list[str] = []
        self.ended = threading.Event()
        self.error = ""

    @property
    def log(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def status(self) -> str:
        if not self.ended.is_set():
            return "Running"
        return "Failed" if self.error else "Succeeded"


class Images:
    """Builds an environment's image when a job, a deployment or the client first asks for it."""

    def __init__(self, resources: Resources, store: BlobStore, faults: Faults):
        self._resources, self._store, self._faults = resources, store, faults
        self._builds: dict[str, Build] = {}
        self._lock = threading.Lock()

    def routes(self, router: Router) -> None:
        """Those of the data plane, as the older SDK (azureml-core) calls them to build ahead of the first job."""
        version = f"{names.WORKSPACE_ID}/environments/{{name}}/versions/{{version}}"
        router.add("POST", f"/environment/v2.0{version}/image", self._start)
        router.add("GET", f"/environment/v1.0{version}/image", self._details)
        router.add("GET", f"/environment/v2.0{names.WORKSPACE_ID}/builds/{{identifier}}", self._status)

    @property
    def builds(self) -> list[Build]:
        """All builds that were begun, in order."""
        return list(self._builds.values())

    def clear(self) -> None:
        self._builds.clear()

    def ensure(self, environment: Resource, watch: Callable[[Build], None] = lambda build: None) -> Build:
        """Wait until the environment's image is there; ``watch`` is called while it is being built.

        Raises:
            ServiceError: the build failed.
        """
        build = self._begun(environment)
        while not build.ended.wait(SECONDS_A_STEP):
            watch(build)
        watch(build)
        if build.error:
            raise ServiceError(400, "ImageBuildFailure", f"Image build failed: {build.error}")
        return build

    def base_of(self, environment: Resource) -> str:
        """The image that its Dockerfile begins with."""
        return next(step for step in self._steps(environment) if step.startswith("FROM ")).split()[1]

    def _begun(self, environment: Resource) -> Build:
        """The environment's build; one that failed is not asked again."""
        with self._lock:
            build = self._builds.get(environment["id"])
            if build is None or build.error:
                build = Build(f"{uuid.uuid4().hex[:8]}")
                self._builds[environment["id"]] = build
                threading.Thread(target=self._build, args=(build, environment), name="image build", daemon=True).start()
            return build

    def _build(self, build: Build, environment: Resource) -> None:
        try:
            steps = self._steps(environment)
            for number, step in enumerate(steps, 1):
                build.lines.append(f"Step {number}/{len(steps)} : {step}")
                build.ended.wait(SECONDS_A_STEP)
            if fault := self._faults.of_event("build"):
                build.error = fault.detail
                build.lines.append(fault.detail)
            else:
                build.lines.append(f"Successfully tagged {environment['name']}")
        except (ServiceError, FileNotFoundError) as error:
            build.error = str(error)
            build.lines.append(str(error))
        finally:
            self._store.write(f"ImageLogs/{build.identifier}/build.log", build.log.encode())
            build.ended.set()

    def _steps(self, environment: Resource) -> list[str]:
        """The instructions of its Dockerfile; none for an image that exists already.

        Raises:
            FileNotFoundError: the build context or its Dockerfile is missing.
        """
        context = environment["properties"].get("build")
        if not context:
            return []
        with tempfile.TemporaryDirectory() as folder:
            root = self._store.fetch(context["contextUri"], Path(folder))
            text = (root / context.get("dockerfilePath", "Dockerfile")).read_text(encoding="utf-8")
        lines = text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def _start(self, request: Request, name: str, version: str) -> Response:
        build = self._begun(self._resources.get(f"environments/{name}/versions/{version}"))
        location = f"https://{names.DATA_PLANE}/environment/v2.0{names.WORKSPACE_ID}/builds/{build.identifier}"
        return answer({"location": location}, 202)

    def _details(self, request: Request, name: str, version: str) -> Response:
        environment = self._resources.get(f"environments/{name}/versions/{version}")
        build = self._builds.get(environment["id"])
        exists = build is not None and build.status == "Succeeded"
        return answer({"imageExistsInRegistry": exists, "dockerImage": {"name": f"azureml/{name}:{version}"}})

    def _status(self, request: Request, identifier: str) -> Response:
        build = next((build for build in self.builds if build.identifier == identifier), None)
        if build is None:
            raise ServiceError(404, "ResourceNotFound", f"There is no build {identifier}.")
        log = f"ImageLogs/{build.identifier}/build.log"
        self._store.write(log, build.log.encode())
        return answer(
            {"status": build.status, "logUrl": self._store.blob_url(log)}, 200 if build.ended.is_set() else 202
        )
