"""Command jobs: submitted, listed and cancelled here; ``job_run`` has what happens to one in between."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standin import names
from standin.job_run import JobRun, Site
from standin.resources import POLL, Resource, Resources
from standin.sweep_run import SweepRun
from standin.web import Request, Response, Router, ServiceError, answer

CHANGEABLE = ("description", "tags", "displayName", "isArchived")
ENDED = ("Completed", "Failed", "Canceled")


class Jobs:
    """All jobs; ``jobs[name]`` is the run of one."""

    def __init__(self, site: Site, resources: Resources, folder: Path):
        self._site, self._resources, self._folder = site, resources, folder
        self._runs: dict[str, Any] = {}
        self._lock = threading.Lock()

    def routes(self, router: Router) -> None:
        job = f"{names.WORKSPACE_ID}/jobs/{{name}}"
        router.add("GET", f"{names.WORKSPACE_ID}/jobs", self._list)
        router.add("GET", job, self._get)
        router.add("PUT", job, self._put)
        router.add("DELETE", job, self._delete)
        router.add("POST", f"{job}/cancel", self._cancel)

    def __getitem__(self, name: str) -> JobRun:
        return self._runs[name]

    def __iter__(self):
        return iter(list(self._runs.values()))

    def adopt(self, run: JobRun) -> None:
        """Take in a trial that a sweep has begun."""
        self._runs[run.name] = run

    def running(self) -> list[str]:
        """Names of jobs that have not ended."""
        return [name for name, run in list(self._runs.items()) if not run.ended.is_set()]

    def find(self, name: str) -> JobRun:
        """Raises ServiceError: there is no such job."""
        if name not in self._runs:
            raise ServiceError(404, "UserError", f"Run {name} was not found.")
        return self._runs[name]

    def stop(self) -> None:
        """End all of them, and forget them."""
        for run in self:
            run.cancelled.set()
        for run in self:
            run.ended.wait()
        self._runs.clear()

    def _list(self, request: Request) -> Response:
        found = self._resources.children("jobs")
        if wanted := request.query.get("jobtype"):
            found = [job for job in found if job["properties"]["jobType"] == wanted]
        if key := request.query.get("tag"):
            found = [job for job in found if key in (job["properties"].get("tags") or {})]
        return answer({"value": found})

    def _get(self, request: Request, name: str) -> Response:
        return answer(self._resources.get(f"jobs/{name}"))

    def _put(self, request: Request, name: str) -> Response:
        path, body = f"jobs/{name}", request.json
        with self._lock:
            if old := self._resources.find(path):
                changed = {key: body["properties"][key] for key in CHANGEABLE if key in body["properties"]}
                resource, _ = self._resources.put(path, {**old, "properties": old["properties"] | changed})
                return answer(resource)
            self._check(body["properties"])
            resource, _ = self._resources.put(path, {"properties": _submitted(name, body["properties"])})
            common = (self._site, name, resource["properties"], self._folder / name)
            is_sweep = body["properties"]["jobType"] == "Sweep"
            self._runs[name] = SweepRun(*common, self.adopt) if is_sweep else JobRun(*common)
            self._runs[name].start()
        return answer(resource, 201)

    def _check(self, properties: Mapping[str, Any]) -> None:
        """Raises ServiceError: something that the job refers to does not exist, or it is of a kind not run here."""
        if properties["jobType"] not in ("Command", "Sweep"):
            raise ServiceError(400, "UserError", f"the stand-in runs no {properties['jobType']} jobs")
        for key in ("codeId", "environmentId"):
            if identifier := properties.get("trial", properties).get(key):
                self._resources.by_id(identifier)
        if compute := properties.get("computeId"):
            self._site.workspace.cluster(compute)

    def _delete(self, request: Request, name: str) -> Response:
        if name in self.running():
            raise ServiceError(400, "UserError", f"Job {name} is running; cancel it first.")
        return answer(status=200 if self._resources.remove(f"jobs/{name}") else 204)

    def _cancel(self, request: Request, name: str) -> Response:
        run = self.find(name)
        if run.ended.is_set():
            raise ServiceError(400, "UserError", f"Job {name} is in status {run.status} and cannot be cancelled.")
        run.cancelled.set()
        location = f"https://{names.ARM}{names.WORKSPACE_ID}/jobs/{name}?api-version={request.api_version}"
        return Response(202, b"", {"Location": location, **POLL})


def _submitted(name: str, properties: Resource) -> Resource:
    studio = f"https://ml.azure.com/runs/{name}?wsid={names.WORKSPACE_ID}&tid={names.TENANT}"
    return {
        **properties,
        "displayName": properties.get("displayName") or name,
        "experimentName": properties.get("experimentName") or "Default",
        "status": "Queued",
        "services": {
            "Tracking": {
                "jobServiceType": "Tracking",
                "endpoint": f"azureml://{names.DATA_PLANE}/mlflow/v1.0{names.WORKSPACE_ID}",
            },
            "Studio": {"jobServiceType": "Studio", "endpoint": studio},
        },
        "inputs": properties.get("inputs") or {},
        "outputs": properties.get("outputs") or {},
    }
