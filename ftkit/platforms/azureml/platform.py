"""An Azure ML workspace as a platform; Azure's SDK is imported as it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.config.schema import Config
from ftkit.packages import require_extra
from ftkit.platforms.azureml import in_job
from ftkit.platforms.base import Asset, Deployed, Finding, JobRequest, Running, Say, Target

if TYPE_CHECKING:
    from ftkit.platforms.azureml.known_jobs import Job
    from ftkit.platforms.azureml.workspace import Workspace


class AzureML:
    """See ``ftkit.platforms.base.RemotePlatform``.

    Args:
        config: the whole configuration.
        run_folder: ``outputs/<run>``; the SDK's log and what is known of jobs lie in it.

    Raises:
        StageError: a package of the extra ``azure`` is missing.
    """

    def __init__(self, config: Config, run_folder: Path):
        require_extra("azure", "Azure ML")
        self.config, self.run_folder = config, run_folder

    @cached_property
    def workspace(self) -> Workspace:
        from ftkit.platforms.azureml.workspace import LOG, Workspace

        return Workspace(self.config.workspace, self.run_folder / LOG, self.config.tags)

    @property
    def _mark(self) -> Mapping[str, str]:
        from ftkit.platforms.azureml.ownership import Mark

        return Mark(self.config.run.name, self.workspace.owner, given=self.config.tags).tags

    def build_images(self, say: Say) -> str:
        from ftkit.platforms.azureml import deployment_spec, environments

        settings = self.config.environment
        vllm = deployment_spec.with_vllm(self.config)
        made = [
            environments.ensure(self.workspace, "train", settings.train, say),
            environments.ensure(self.workspace, "serve", settings.serve, say, with_vllm=vllm),
        ]
        if settings.wait:
            for each in made:
                environments.follow_build(self.workspace, each, say)
        return ", ".join(f"{each.id} ({'new' if each.new else 'unchanged'})" for each in made)

    def publish(self, name: str, content: Path, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        from ftkit.platforms.azureml import assets

        return assets.publish(self.workspace, name, content, digest, {**self._mark, **tags}, say)

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        from ftkit.platforms.azureml import assets

        return assets.register(self.workspace, name, content, digest, {**self._mark, **tags})

    def holds(self, asset: Mapping[str, Any]) -> bool:
        from ftkit.platforms.azureml import assets

        return assets.exists(self.workspace, asset)

    def deploy(self, model: Mapping[str, Any], say: Say) -> Deployed:
        from ftkit.platforms.azureml import bundle, rollout

        if self.config.deployment.adapters:
            model = bundle.registered(self.workspace, self.config, self.run_folder, self._mark, say)
        return rollout.deploy(self.workspace, self.config, model, say)

    def serves(self, deployed: Mapping[str, Any]) -> bool:
        from ftkit.platforms.azureml import endpoints

        return endpoints.serves(self.workspace, self.config, deployed)

    def target(self) -> Target | None:
        from ftkit.platforms.azureml import endpoints

        return endpoints.target(self.workspace, self.config.deployment)

    def run_job(self, request: JobRequest, say: Say, show: Say) -> Job:
        from ftkit.platforms.azureml import jobs

        return jobs.run(self.workspace, self.config, self.run_folder, request, say, show)

    def run_sweep(self, request: JobRequest, space: Mapping[str, Sequence[str]], say: Say, show: Say) -> str:
        from ftkit.platforms.azureml import sweeps

        return sweeps.run(self.workspace, self.config, self.run_folder, request, space, say, show)

    def preflight(self) -> list[Finding]:
        from ftkit.platforms.azureml import preflight

        return preflight.check(self.workspace, self.config, self.run_folder)

    def check_deployable(self) -> None:
        """What a deployment needs is asked of Azure, by ``preflight``."""

    def running(self) -> list[Running]:
        from ftkit.platforms.azureml import known_jobs, running

        return [
            *known_jobs.running(self.workspace, self.config.run.name, self.run_folder),
            *running.running(self.workspace, self.config),
        ]

    @staticmethod
    def enter_job(config: Config) -> None:
        in_job.read_hub_token(config)

    @staticmethod
    def own_job() -> str:
        return in_job.own_job()


PLATFORM = AzureML
