"""This machine as a platform: assets in ``<outputs>/_workspace``, endpoints on 127.0.0.1, nothing that costs money."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.digests import Digests
from ftkit.errors import StageError
from ftkit.files import tree_digest
from ftkit.platforms.adapters import find_adapters, lay_out
from ftkit.platforms.base import Asset, Deployed, Running, Say, Target
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.platforms.local import store as local_store
from ftkit.serving.servers import SERVERS
from ftkit.serving.settings import engine_arguments, variables_of


def store_of(config: Config) -> Path:
    """The folder with the versions of data and models, for all runs."""
    return Path(config.run.outputs) / "_workspace"


class Local:
    """See ``ftkit.platforms.base.Platform``."""

    def __init__(self, config: Config, run_folder: Path):
        self._config = config
        self._store = store_of(config)
        self._endpoints = self._store / "endpoints"

    def publish(self, name: str, content: Path, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        return local_store.register(self._store, "data", name, content, digest, type="uri_folder", tags=tags, wait=say)

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any], say: Say) -> tuple[Asset, bool]:
        type, folder = self._config.registration.type, Path(content)
        if not folder.is_dir():
            raise StageError("there is no such folder to register", where=content, cure="stage=merge,register")
        digest = tree_digest(folder, besides=(local_store.CARD,), digests=Digests(folder.parent))
        return local_store.register(self._store, "models", name, folder, digest, type=type, tags=tags, wait=say)

    def holds(self, asset: Mapping[str, Any]) -> bool:
        return local_store.is_whole(
            self._store / asset["kind"] / asset["name"] / asset["version"] / local_store.CONTENT, asset["digest"]
        )

    def check_deployable(self) -> None:
        """See that ``deploy`` could start its server.

        Raises:
            StageError: a package is missing, or the port is taken.
        """
        settings = self._config.deployment
        local_endpoint.check_startable(self._endpoints, settings.endpoint_name, settings.port, settings.server)

    def deploy(self, model: Mapping[str, Any], say: Say) -> Deployed:
        settings = self._config.deployment
        served, model_dir = self._served(model)
        endpoint = local_endpoint.start(
            endpoint_name=settings.endpoint_name,
            deployment_name=settings.deployment_name,
            model_dir=model_dir,
            state_dir=self._endpoints,
            port=settings.port,
            startup_timeout_s=settings.startup_timeout_s,
            request_timeout_ms=settings.request_timeout_ms,
            server=settings.server,
            variables=variables_of(self._config, self._config.model.name if settings.adapters else model["name"]),
            engine_args=() if SERVERS[settings.server].is_own else engine_arguments(self._config),
            instance_count=settings.instance_count,
            front_processes=settings.front_processes,
            max_concurrent_requests=settings.max_concurrent_requests_per_instance,
            model=served,
            progress=say,
        )
        if endpoint.page_uri:
            say(f"a page to talk with it: {endpoint.page_uri}")
        share = f"{endpoint.traffic[endpoint.deployment_name]} % of the traffic"
        summary = f"{endpoint.deployment_name} serves {served} with {share} at {endpoint.scoring_uri}"
        for folder in self._with_adapters().glob("*"):
            if folder != model_dir:
                shutil.rmtree(folder)
        result = asdict(endpoint)
        result["state"] = result.pop("folder")  # a record's folder is one of the run
        return Deployed(summary, result)

    def _served(self, model: Mapping[str, Any]) -> tuple[str, Path]:
        """What is served, in words, and the folder that holds its folder.

        That folder is named by a number, as at a managed endpoint: the inference server takes it for the version.
        """
        if adapters := find_adapters(self._config):
            folder = lay_out(self._config, adapters, self._with_adapters())
            return f"{self._config.model.name} with the adapters {', '.join(adapters)}", folder
        found = local_store.get(self._store, "models", model["name"], model["version"])
        return found.id, Path(found.path).parent

    def _with_adapters(self) -> Path:
        return self._endpoints / self._config.deployment.endpoint_name / "with-adapters"

    def serves(self, deployed: Mapping[str, Any]) -> bool:
        endpoint = self._endpoint()
        return endpoint is not None and endpoint.pid == deployed["pid"]

    def target(self) -> Target | None:
        endpoint = self._endpoint()
        if endpoint is None:
            return None
        return Target(endpoint.scoring_uri, endpoint.server, log=endpoint.log, page=endpoint.page_uri)

    def running(self) -> list[Running]:
        name = self._config.deployment.endpoint_name
        found = (("serves", self._endpoint()), ("is loading", local_endpoint.find_starting(self._endpoints, name)))
        return [_running(endpoint, does) for does, endpoint in found if endpoint]

    def _endpoint(self) -> local_endpoint.Endpoint | None:
        return local_endpoint.find(self._endpoints, self._config.deployment.endpoint_name)


def _running(endpoint: local_endpoint.Endpoint, does: str) -> Running:
    what = (
        f"endpoint {endpoint.endpoint_name}: {endpoint.deployment_name} {does} {endpoint.model} "
        f"at {endpoint.scoring_uri} (process {endpoint.pid})"
    )
    return Running(what, 0, lambda: local_endpoint.stop(endpoint))


PLATFORM = Local
