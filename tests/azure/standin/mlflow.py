"""The workspace's MLflow tracking server, as far as runs, parameters, tags and metrics go."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from standin import names
from standin.jobs import Jobs
from standin.web import Request, Response, Router, ServiceError, answer

ENDED = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}


@dataclass
class TrackedRun:
    """What was logged to one run; ``metrics`` has every value in the order of its logging."""

    name: str
    experiment: str
    status: str = "RUNNING"
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def latest(self) -> dict[str, float]:
        return {key: values[-1]["value"] for key, values in self.metrics.items()}

    def shown(self) -> dict[str, Any]:
        info = {
            "run_id": self.name,
            "run_uuid": self.name,
            "run_name": self.tags.get("mlflow.runName", self.name),
            "experiment_id": experiment_id(self.experiment),
            "status": self.status,
            "start_time": self.started,
            "lifecycle_stage": "active",
            "artifact_uri": f"azureml://{names.DATA_PLANE}/mlflow/v2.0{names.WORKSPACE_ID}/experiments/x/runs/{self.name}/artifacts",
        }
        pairs = {"params": self.parameters, "tags": self.tags}
        data = {kind: [{"key": key, "value": value} for key, value in sorted(of.items())] for kind, of in pairs.items()}
        return {"info": info, "data": {"metrics": [values[-1] for values in self.metrics.values()], **data}}


class Tracking:
    """``tracking[name]`` is what was logged to a run; every job is one."""

    def __init__(self, jobs: Jobs):
        self._jobs = jobs
        self._runs: dict[str, TrackedRun] = {}
        self._experiments: dict[str, str] = {}
        self._lock = threading.RLock()

    def routes(self, router: Router) -> None:
        calls: Iterable[tuple[str, str, Callable[[dict[str, Any]], Any]]] = (
            ("GET", "experiments/get-by-name", self._experiment_by_name),
            ("GET", "experiments/get", self._experiment),
            ("POST", "experiments/create", self._create_experiment),
            ("POST", "experiments/search", self._search_experiments),
            ("POST", "runs/create", self._create_run),
            ("GET", "runs/get", lambda sent: {"run": self._of(sent).shown()}),
            ("POST", "runs/update", self._update_run),
            ("POST", "runs/search", self._search_runs),
            ("POST", "runs/log-metric", lambda sent: self._log(sent, metrics=[sent])),
            ("POST", "runs/log-parameter", lambda sent: self._log(sent, params=[sent])),
            ("POST", "runs/set-tag", lambda sent: self._log(sent, tags=[sent])),
            ("POST", "runs/log-batch", self._log_batch),
            ("GET", "metrics/get-history", self._metric_history),
        )
        for method, path, call in calls:
            for prefix in ("api/2.0/mlflow", "ajax-api/2.0/mlflow"):
                router.add(method, f"/mlflow/v1.0{names.WORKSPACE_ID}/{prefix}/{path}", _called(call))

    def __getitem__(self, name: str) -> TrackedRun:
        return self._runs[name]

    def clear(self) -> None:
        self._runs.clear()

    def _of(self, sent: dict[str, Any]) -> TrackedRun:
        name = sent.get("run_id") or sent.get("run_uuid") or ""
        with self._lock:
            if name not in self._runs:
                self._runs[name] = TrackedRun(name, self._jobs.find(name).properties["experimentName"])
            run = self._runs[name]
        if name in [job.name for job in self._jobs]:
            run.status = ENDED.get(self._jobs.find(name).status, "RUNNING")
        return run

    def _log(
        self,
        sent: dict[str, Any],
        metrics: Iterable[dict[str, Any]] = (),
        params: Iterable[dict[str, Any]] = (),
        tags: Iterable[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        run = self._of(sent)
        with self._lock:
            for metric in metrics:
                point = {key: metric.get(key, 0) for key in ("key", "value", "timestamp", "step")}
                run.metrics.setdefault(metric["key"], []).append(point)
            run.parameters |= {item["key"]: str(item["value"]) for item in params}
            run.tags |= {item["key"]: str(item["value"]) for item in tags}
        return {}

    def _log_batch(self, sent: dict[str, Any]) -> dict[str, Any]:
        return self._log(sent, sent.get("metrics") or (), sent.get("params") or (), sent.get("tags") or ())

    def _create_run(self, sent: dict[str, Any]) -> dict[str, Any]:
        experiment = self._experiments.get(str(sent.get("experiment_id", "")), "Default")
        run = TrackedRun(str(uuid.uuid4()), experiment)
        self._runs[run.name] = run
        self._log({"run_id": run.name}, tags=sent.get("tags") or ())
        return {"run": run.shown()}

    def _update_run(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = self._of(sent)
        run.status = sent.get("status", run.status)
        return {"run_info": run.shown()["info"]}

    def _search_runs(self, sent: dict[str, Any]) -> dict[str, Any]:
        wanted = sent.get("experiment_ids") or []
        for job in self._jobs:
            self._of({"run_id": job.name})
        return {"runs": [run.shown() for run in list(self._runs.values()) if experiment_id(run.experiment) in wanted]}

    def _metric_history(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"metrics": self._of(sent).metrics.get(sent["metric_key"], [])}

    def _experiment_by_name(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = sent["experiment_name"]
        known = {job.properties["experimentName"] for job in self._jobs} | set(self._experiments.values())
        if name not in known:
            raise ServiceError(404, "RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name {name}")
        return {"experiment": self._shown_experiment(name)}

    def _experiment(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"experiment": self._shown_experiment(self._experiments[sent["experiment_id"]])}

    def _create_experiment(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"experiment_id": self._shown_experiment(sent["name"])["experiment_id"]}

    def _search_experiments(self, sent: dict[str, Any]) -> dict[str, Any]:
        for job in self._jobs:
            self._shown_experiment(job.properties["experimentName"])
        return {"experiments": [self._shown_experiment(name) for name in list(self._experiments.values())]}

    def _shown_experiment(self, name: str) -> dict[str, Any]:
        identifier = experiment_id(name)
        self._experiments[identifier] = name
        return {"experiment_id": identifier, "name": name, "lifecycle_stage": "active", "artifact_location": ""}


def experiment_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _called(call: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Response]:
    return lambda request: answer(call({**request.query, **request.json}))
