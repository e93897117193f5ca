"""One sweep job: a command job for each point of a grid, so many at a time, in an order that tests can rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from standin.job_run import TICK_SECONDS, JobRun, Site
from standin.resources import Resource
from standin.web import ServiceError

TRIAL_KEYS = ("codeId", "command", "environmentId", "distribution", "resources", "environmentVariables")


class SweepRun:
    """A sweep under way; ``trials`` are its jobs, the rest is as of any job."""

    def __init__(self, site: Site, name: str, properties: Resource, folder: Path, adopt: Callable[[JobRun], None]):
        self._adopt = adopt
        self._site, self.name, self.folder, self.properties = site, name, folder, properties
        self.started, self.ended, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.logs: dict[str, str] = {}
        self.error: dict[str, Any] | None = None
        self.status = "Queued"
        self.attempts = 1
        self.trials: list[JobRun] = []

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"sweep {self.name}", daemon=True).start()

    def _run(self) -> None:
        self._set_status("Running")
        self.started.set()
        waiting = list(enumerate(self._points()))
        at_a_time = int(self.properties["limits"].get("maxConcurrentTrials") or 1)
        while waiting or any(not trial.ended.is_set() for trial in self.trials):
            running = [trial for trial in self.trials if not trial.ended.is_set()]
            if self.cancelled.is_set():
                waiting.clear()
                for trial in running:
                    trial.cancelled.set()
            if waiting and len(running) < at_a_time:
                self.trials.append(self._begun(*waiting.pop(0)))
            time.sleep(TICK_SECONDS)
        failed = [trial for trial in self.trials if trial.status == "Failed"]
        if failed and len(failed) == len(self.trials):
            self.error = failed[0].error
        self._set_status("Canceled" if self.cancelled.is_set() else "Failed" if self.error else "Completed")
        self.ended.set()

    def _points(self) -> list[dict[str, str]]:
        """Raises ServiceError: a parameter is not a choice among values."""
        space = self.properties["searchSpace"]
        if any(kind != "choice" for kind, _ in space.values()):
            raise ServiceError(400, "UserError", "the stand-in searches grids alone")
        points = product(*(values[0] for _, values in space.values()))
        return [dict(zip(space, map(str, point), strict=True)) for point in points]

    def _begun(self, number: int, point: dict[str, str]) -> JobRun:
        name, trial = f"{self.name}_{number}", self.properties["trial"]
        command = trial["command"]
        for key, value in point.items():
            command = command.replace(f"${{{{search_space.{key}}}}}", value)
        own = {key: trial[key] for key in TRIAL_KEYS if key in trial} | {"command": command, "jobType": "Command"}
        shared = {
            key: self.properties[key] for key in ("experimentName", "limits", "services") if key in self.properties
        }
        outputs = {key: dict(output) for key, output in self.properties["outputs"].items()}
        made = {**shared, **own, "inputs": self.properties["inputs"], "outputs": outputs, "status": "Queued"}
        made["limits"] = {"jobLimitsType": "Command", "timeout": self.properties["limits"].get("trialTimeout")}
        self._site.resources.put(f"jobs/{name}", {"properties": made})
        run = JobRun(self._site, name, made, self.folder.parent / name)
        self._adopt(run)
        run.start()
        return run

    def _set_status(self, status: str) -> None:
        self.status = status
        self._site.resources.change(f"jobs/{self.name}", status=status)
