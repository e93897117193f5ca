"""An Azure ML workspace as a platform. Only modules of this package import Azure's SDK."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.config.schema import Config
from ftkit.extras import require
from ftkit.platforms import Asset, Deployed, Running, Say, Target
from ftkit.platforms.azureml.work import Work

if TYPE_CHECKING:
    from ftkit.platforms.azureml.checks import Finding
    from ftkit.platforms.azureml.jobs import Job
    from ftkit.platforms.azureml.workspace import Workspace

for name in ("azure", "azure.ai.ml"):
    logging.getLogger(name).addHandler(logging.NullHandler())  # else importing it prints warnings about itself

NEEDED = ("azure.ai.ml", "azure.identity", "azure.storage.blob", "httpx")


class AzureML:
    """See ``ftkit.platforms.Platform``.

    Args:
        config: the whole configuration.
        run_folder: ``outputs/<run>``; the SDK's log and what is known of jobs lie in it.

    Raises:
        StageError: a package of the extra ``azure`` is missing.
    """

    def __init__(self, config: Config, run_folder: Path):
        require("azure", NEEDED, "Azure ML")
        self.config, self.run_folder = config, run_folder

    @cached_property
    def workspace(self) -> Workspace:
        from ftkit.platforms.azureml.workspace import LOG, Workspace

        return Workspace(self.config.workspace, self.run_folder / LOG)

    def build_images(self, say: Say) -> str:
        """Make sure that the environments of jobs and endpoints exist; returns one line for the user."""
        from ftkit.platforms.azureml import environments

        settings = self.config.environment
        made = [
            environments.ensure(self.workspace, kind, name, say)
            for kind, name in (("train", settings.train), ("serve", settings.serve))
        ]
        if settings.wait:
            for each in made:
                environments.follow_build(self.workspace, each, say)
        return ", ".join(f"{each.id} ({'new' if each.new else 'unchanged'})" for each in made)

    def publish(self, name: str, content: Path, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        from ftkit.platforms.azureml import assets

        return assets.publish(self.workspace, name, content, tags)

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        from ftkit.platforms.azureml import assets

        return assets.register(self.workspace, name, content, digest, tags)

    def holds(self, asset: Mapping[str, Any]) -> bool:
        from ftkit.platforms.azureml import assets

        return assets.exists(self.workspace, asset)

    def deploy(self, model: Mapping[str, Any], say: Say) -> Deployed:
        from ftkit.platforms.azureml import rollout

        return rollout.deploy(self.workspace, self.config, model, say)

    def serves(self, deployed: Mapping[str, Any]) -> bool:
        from ftkit.platforms.azureml import endpoints

        return endpoints.serves(self.workspace, deployed)

    def target(self) -> Target | None:
        from ftkit.platforms.azureml import endpoints

        return endpoints.target(self.workspace, self.config.deployment)

    def run_job(self, work: Work, say: Say, show: Say) -> Job:
        """Run stages in one job, or follow the one that runs them already, and fetch their records.

        Args:
            show: prints a line of the job's log.
        """
        from ftkit.platforms.azureml import jobs

        return jobs.run(self.workspace, self.config, self.run_folder, work, say, show)

    def run_sweep(self, work: Work, space: Mapping[str, Sequence[str]], say: Say, show: Say) -> str:
        """Run a native sweep job over values by key and fetch its trials' records; returns one line for the user."""
        from ftkit.platforms.azureml import sweeps

        return sweeps.run(self.workspace, self.config, self.run_folder, work, space, say, show)

    def check(self) -> list[Finding]:
        """Ask Azure for all that the configured stages will need; changes nothing."""
        from ftkit.platforms.azureml import checks

        return checks.check(self.workspace, self.config)

    def running(self) -> list[Running]:
        from ftkit.platforms.azureml import endpoints, jobs

        return [
            *jobs.running(self.workspace, self.run_folder),
            *endpoints.running(self.workspace, self.config.deployment),
        ]
