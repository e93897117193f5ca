"""This machine as a platform: assets in ``<outputs>/_workspace``, endpoints on 127.0.0.1, nothing that costs money."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.platforms import Asset, Deployed, Running, Say, Target, local_endpoint, local_store
from ftkit.platforms.adapted import find_adapters, lay_out


class Local:
    """See ``ftkit.platforms.Platform``."""

    def __init__(self, config: Config):
        self._config = config
        self._store = Path(config.run.outputs) / "_workspace"
        self._endpoints = self._store / "endpoints"

    def publish(self, name: str, content: Path, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        return local_store.register(self._store, "data", name, content, type="uri_folder", tags=tags)

    def register(self, name: str, content: str, digest: str, tags: Mapping[str, Any]) -> tuple[Asset, bool]:
        type = self._config.registration.type
        return local_store.register(self._store, "models", name, Path(content), type=type, tags=tags)

    def holds(self, asset: Mapping[str, Any]) -> bool:
        return Path(asset["path"]).is_dir()

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
            instance_count=settings.instance_count,
            max_concurrent_requests=settings.max_concurrent_requests_per_instance,
            model=served,
            progress=say,
        )
        share = f"{endpoint.traffic[endpoint.deployment_name]} % of the traffic"
        summary = f"{endpoint.deployment_name} serves {served} with {share} at {endpoint.scoring_uri}"
        for folder in self._with_adapters().glob("*"):
            if folder != model_dir:
                shutil.rmtree(folder)
        return Deployed(summary, asdict(endpoint))

    def _served(self, model: Mapping[str, Any]) -> tuple[str, Path]:
        """What is served, in words, and the folder that holds its folder."""
        if adapters := find_adapters(self._config):
            folder = lay_out(self._config, adapters, self._with_adapters())
            return f"{self._config.model.name} with the adapters {', '.join(adapters)}", folder
        found = local_store.get(self._store, "models", model["name"], model["version"])
        return found.id, Path(found.path)

    def _with_adapters(self) -> Path:
        return self._endpoints / self._config.deployment.endpoint_name / "with-adapters"

    def serves(self, deployed: Mapping[str, Any]) -> bool:
        endpoint = self._endpoint()
        return endpoint is not None and endpoint.pid == deployed["pid"]

    def target(self) -> Target | None:
        endpoint = self._endpoint()
        return Target(endpoint.scoring_uri, endpoint.server, log=endpoint.log) if endpoint else None

    def running(self) -> list[Running]:
        endpoint = self._endpoint()
        if endpoint is None:
            return []
        what = (
            f"endpoint {endpoint.endpoint_name}: {endpoint.deployment_name} serves {endpoint.model} "
            f"at {endpoint.scoring_uri} (process {endpoint.pid})"
        )
        return [Running(what, 0, lambda: local_endpoint.stop(endpoint))]

    def _endpoint(self) -> local_endpoint.Endpoint | None:
        return local_endpoint.find(self._endpoints, self._config.deployment.endpoint_name)
