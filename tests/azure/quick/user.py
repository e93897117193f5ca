"""A person with a run of their own, who types commands on some machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ftkit import records
from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml.platform import AzureML
from ftkit.platforms.base import JobRequest
from ftkit.records import Record
from ftkit.stages import teardown
from quick import actors
from quick.client import QuickWorkspace
from quick.service import Service

MODEL = {"name": "served", "version": "1", "path": "azureml:served:1"}
ENDPOINT = "ftkit-tiny"


@cache
def _config() -> Config:
    ids = ("workspace.subscription_id=s", "workspace.resource_group=g", "workspace.workspace_name=w")
    return resolve(["experiment=tiny-azure", "stage=teardown", *ids])


class User:
    """Somebody at a machine.

    Attributes:
        said: lines that the commands printed.
    """

    def __init__(self, service: Service, name: str, folder: Path, run: str = "jp"):
        self.service, self.name, self.folder, self.run = service, name, folder / run, run
        self.said: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def config(self, **changed: Any) -> Config:
        base = _config()
        run = base.run.model_copy(update={"name": self.run, "outputs": str(self.folder.parent)})
        own = {key: value for key, value in changed.items() if key in ("force", "yes", "attach")}
        of_deployment = {k: v for k, v in changed.items() if k not in own}
        if "max_instances" in of_deployment:
            most = {"max_instances": of_deployment.pop("max_instances")}
            of_deployment["autoscale"] = base.deployment.autoscale.model_copy(update=most)
        deployment = base.deployment.model_copy(update=of_deployment)
        return base.model_copy(update={"run": run, "deployment": deployment, "yes": False, **own})

    def platform(self, **changed: Any) -> AzureML:
        made = AzureML(self.config(**changed), self.folder)
        made.__dict__["workspace"] = QuickWorkspace(self.service, self.name, self.folder)
        return made

    # Commands, as functions that a test calls or gives to an actor.

    def train(self, of: str = "a", stages: tuple[str, ...] = ("train",), **changed: Any) -> None:
        """``stage=train``: up to date by its record, or one job."""
        fingerprint = f"{of:0>64}"
        kept = records.read(self.folder, stages[0])
        if kept and kept.fingerprint == fingerprint and not changed.get("force"):
            return
        made = {"path": "azureml:data:1"}
        published = Record("publish", "p", {}, {}, {}, made, {}, 1.0, "2026-01-01T00:00:00+00:00")
        request = JobRequest(list(stages), fingerprint, {"publish": published})
        self.platform(**changed).run_job(request, self.said.append, self.said.append)

    def deploy(self, version: str = "1", **changed: Any) -> str:
        model = {**MODEL, "version": version, "path": f"azureml:served:{version}"}
        return self.platform(**changed).deploy(model, self.said.append).summary

    def teardown(self, **changed: Any) -> str:
        changed = {"yes": True, **changed}
        context: Any = SimpleNamespace(
            platform_named=lambda _name: self.platform(**changed), config=self.config(**changed), say=self.said.append
        )
        return teardown.run(context).summary

    def running(self) -> list[str]:
        """What teardown would stop."""
        return [each.what for each in self.platform().running() if each.stop]

    def starts(self, command: Callable[[], Any]) -> actors.Actor:
        return actors.Actor(self.name, command)

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


def fails(command: Callable[[], object]) -> StageError:
    """The error that a command ends with."""
    try:
        command()
    except StageError as error:
        return error
    raise AssertionError("it did not fail")
