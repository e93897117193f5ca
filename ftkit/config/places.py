"""Where a stage's work happens."""

from __future__ import annotations

from ftkit.config.schema import Config


def place_of(stage: str, config: Config) -> str:
    """Where a stage's work happens: ``here``, or the platform of compute or of deployment."""
    if config.run.records:
        return "here"
    if stage in ("deploy", "invoke", "teardown"):
        return config.deployment.platform
    if stage in ("environment", "publish", "train", "merge", "register", "evaluate"):
        return config.compute.platform
    return "here"


def runs_as_job(stage: str, config: Config) -> bool:
    """Whether a stage runs in a job of Azure ML; consecutive ones share a job."""
    return stage in ("train", "merge", "evaluate") and place_of(stage, config) == "azureml"
