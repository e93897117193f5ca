"""What a platform answers, whose machines and stores the stages use; and the registry of platforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from ftkit.config.schema import Config
from ftkit.records import Record

Say = Callable[[str], None]
"""Prints a line to the user."""


@dataclass(frozen=True)
class Asset:
    """One version of a data asset or a model.

    Attributes:
        kind: ``data`` or ``models``.
        name: the asset's name.
        version: a version never changes.
        type: Azure ML's type, ``uri_folder`` or ``custom_model``.
        digest: of the content.
        tags: text pairs that describe it.
        path: where the content lies: a folder, or an ``azureml:`` reference.
    """

    kind: str
    name: str
    version: str
    type: str
    digest: str
    tags: Mapping[str, str]
    path: str

    @property
    def id(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Deployed:
    """A deployment that serves.

    Attributes:
        summary: one line for the user.
        result: names and addresses for the record.
    """

    summary: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        scoring_uri: of the endpoint.
        server: ``score`` or ``vllm``, whose format requests have.
        key: secret that a request carries; None where none is asked for.
        log: path of the server's log; empty where it is not on this machine.
        page: address of a page to talk with it; empty where there is none.
    """

    scoring_uri: str
    server: str = "score"
    key: str | None = field(default=None, repr=False)
    log: str = ""
    page: str = ""


@dataclass(frozen=True)
class Running:
    """Something that runs, and may cost money, until it is stopped.

    Attributes:
        what: for the user: kind, name, what it serves or does.
        usd_per_hour: its list price; None if not known, 0 if it costs nothing.
        stop: ends it; None where it is another's, which is shown and left.
    """

    what: str
    usd_per_hour: float | None
    stop: Callable[[], object] | None

    @property
    def name(self) -> str:
        """Its kind and name."""
        return self.what.partition(":")[0]


@dataclass(frozen=True)
class JobRequest:
    """What a job is to do.

    Attributes:
        stages: names, in order.
        fingerprint: tells apart what would be made.
        records: of the stages made before, by name.
        earlier: address of the run folder of the job that made some of them; empty if none did.
    """

    stages: Sequence[str]
    fingerprint: str
    records: Mapping[str, Record]
    earlier: str = ""


class JobResult(Protocol):
    """A job that has completed."""

    @property
    def name(self) -> str:
        """As the platform knows it."""
        ...

    @property
    def stages(self) -> Sequence[str]:
        """What it has run, which may be fewer than were asked for."""
        ...


@dataclass(frozen=True)
class Finding:
    """What a platform says of one thing that the stages will need.

    Attributes:
        what: was asked for.
        verdict: ``unknown`` where the identity may not look, or an earlier finding stands in the way.
        found: in words.
        cure: of what is wrong.
    """

    what: str
    verdict: Literal["ok", "wrong", "unknown"]
    found: str
    cure: str = ""


class Platform(Protocol):
    """What a stage asks of the place where its work happens. Every method may raise StageError."""

    def publish(self, name: str, content: Path, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        """Keep a folder as a version of a data asset; True if it is new, False if that content is there already.

        Args:
            digest: of the folder, see ``ftkit.files.tree_digest``.
            say: is told of a wait for another command.
        """
        ...

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        """Keep a merged model as a version of a registered model; True if it is new.

        Args:
            content: folder, or address in a job's output.
            digest: tells the content apart where it is not read.
            say: is told of a wait for another command.
        """
        ...

    def holds(self, asset: Mapping[str, Any]) -> bool:
        """Whether a version, as a record has it, is still there, unchanged."""
        ...

    def deploy(self, model: Mapping[str, Any], say: Say) -> Deployed:
        """Serve a registered model at ``deployment.endpoint_name``; what served before stays until it is healthy."""
        ...

    def serves(self, deployed: Mapping[str, Any]) -> bool:
        """Whether a deployment, as a record has it, still serves."""
        ...

    def target(self) -> Target | None:
        """Where ``deployment.endpoint_name`` takes requests; None if it does not run."""
        ...

    def running(self) -> list[Running]:
        """What this run has running here."""
        ...

    def check_deployable(self) -> None:
        """Look for what a deployment would fail of at once: a server that is not installed, a port in use."""
        ...


class JobPlatform(Protocol):
    """What runs stages as jobs. Every method may raise StageError."""

    def running(self) -> list[Running]:
        """What this run has running there."""
        ...

    def preflight(self) -> Sequence[Finding]:
        """Ask for all that the configured stages will need; changes nothing."""
        ...

    def run_job(self, request: JobRequest, say: Say, show: Say) -> JobResult:
        """Run stages in one job, or follow the one that runs them already, and fetch their records.

        Args:
            request: what the job is to do.
            say: prints a line.
            show: prints a line of the job's log.

        Raises:
            StageError: it failed.
            Interrupted: Ctrl-C; the job goes on.
        """
        ...

    @staticmethod
    def own_job() -> str:
        """Name of the job that this process belongs to; empty outside of one."""
        ...


class RemotePlatform(Platform, JobPlatform, Protocol):
    """A platform whose jobs see neither this machine's files nor its packages, but run in images."""

    def build_images(self, say: Say) -> str:
        """Make what jobs and endpoints run in; returns one line for the user."""
        ...

    def run_sweep(self, request: JobRequest, space: Mapping[str, Sequence[str]], say: Say, show: Say) -> str:
        """Run a sweep job over values by key and fetch its trials' records; returns one line for the user."""
        ...

    @staticmethod
    def enter_job(config: Config) -> None:
        """See to what a process inside a job needs before its stages run; without the platform's own packages."""
        ...


PLATFORMS = {
    "local": "ftkit.platforms.local.platform",
    "azureml": "ftkit.platforms.azureml.platform",
    "slurm": "ftkit.platforms.slurm.platform",
}
"""The module of each platform, whose ``PLATFORM`` is its class; imported when the platform is asked for."""


def platform_of(name: str, config: Config, run_folder: Path) -> Platform:
    """A platform by its name.

    Raises:
        StageError: a package that it needs is missing.
    """
    return import_module(PLATFORMS[name]).PLATFORM(config, run_folder)


def job_platform_of(config: Config, run_folder: Path) -> JobPlatform:
    """``compute``'s platform, where it ``has_jobs``.

    Raises:
        StageError: a package or a program that it needs is missing.
    """
    return cast(JobPlatform, platform_of(config.compute.platform, config, run_folder))


def remote_platform_of(config: Config, run_folder: Path) -> RemotePlatform:
    """``compute``'s platform, where its jobs run ``elsewhere``.

    Raises:
        StageError: a package that it needs is missing.
    """
    return cast(RemotePlatform, platform_of(config.compute.platform, config, run_folder))


def platform_class(config: Config) -> type[RemotePlatform]:
    """The class of ``compute``'s platform, for what a process inside a job asks of it."""
    return import_module(PLATFORMS[config.compute.platform]).PLATFORM
