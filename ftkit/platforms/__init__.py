"""Where the work of the stages happens: on this machine, or in an Azure ML workspace. Both answer the same calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ftkit.config.schema import Config

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
    """

    scoring_uri: str
    server: str = "score"
    key: str | None = field(default=None, repr=False)
    log: str = ""


@dataclass(frozen=True)
class Running:
    """Something that runs, and may cost money, until it is stopped.

    Attributes:
        what: for the user: kind, name, what it serves or does.
        usd_per_hour: its list price; None if not known, 0 if it costs nothing.
        stop: ends it.
    """

    what: str
    usd_per_hour: float | None
    stop: Callable[[], object]

    @property
    def name(self) -> str:
        """Its kind and name."""
        return self.what.partition(":")[0]


class Platform(Protocol):
    """What a stage asks of the place where its work happens. Every method may raise StageError."""

    def publish(self, name: str, content: Path, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        """Keep a folder as a version of a data asset; True if it is new, False if that content is there already."""
        ...

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        """Keep a merged model as a version of a registered model; True if it is new.

        Args:
            content: folder, or address in a job's output.
            digest: tells the content apart where it is not read.
        """
        ...

    def holds(self, asset: Mapping[str, Any]) -> bool:
        """Whether a version, as a record has it, is still there."""
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


def platform_of(name: str, config: Config, run_folder: Path) -> Platform:
    """The platform called ``local`` or ``azureml``; only the latter imports Azure's SDK."""
    if name == "azureml":
        from ftkit.platforms.azureml import AzureML

        return AzureML(config, run_folder)
    from ftkit.platforms.local import Local

    return Local(config)
