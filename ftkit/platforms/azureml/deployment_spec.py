"""What a deployment consists of: image, scoring script or container, model, settings, probes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azure.ai.ml.entities import (
    CodeConfiguration,
    DefaultScaleSettings,
    ManagedOnlineDeployment,
    OnlineRequestSettings,
    ProbeSettings,
)

from ftkit.config.schema import Config
from ftkit.files import sha256
from ftkit.platforms.azureml import environments
from ftkit.platforms.azureml.endpoints import DIGEST, MODEL, SERVER
from ftkit.platforms.azureml.ownership import Mark
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say
from ftkit.serving.endpoint.limits import SPARE_THREADS
from ftkit.serving.servers import SERVERS
from ftkit.serving.settings import front_processes, variables_of

PACKAGE = Path(__file__).parents[2]
SCORING_SCRIPT = PACKAGE / "serving" / "score.py"
MODULES = ("serving/endpoint/*.py", "chat/*.py", "families/*.py", "errors.py", "file_locks.py", "processes.py")
PORT = 8000
VLLM = SERVERS["vllm"]
HEALTH = {"port": PORT, "path": VLLM.health}
ROUTES = {"liveness_route": HEALTH, "readiness_route": HEALTH, "scoring_route": {"port": PORT, "path": VLLM.route}}
PROBE_PERIOD_S, PROBE_TIMEOUT_S = 10, 10
CORES = re.compile(r"Standard_[A-Za-z]+(\d+)")
"""In the name of a VM size."""


@dataclass(frozen=True)
class Container:
    """All that makes one deployment another than the next.

    Attributes:
        server: ``score`` or ``vllm``.
        model: ``name:version``.
        environment: name and version of the image's.
        script: digest of the scoring script and its modules; empty for a custom container.
        variables: environment variables of the container; no secret is among them.
        size, count: of its VMs.
        startup_timeout_s, request_timeout_ms, concurrent_requests: see ``deployment`` in the configuration.
    """

    server: str
    model: str
    environment: str
    script: str
    variables: Mapping[str, str]
    size: str
    count: int
    startup_timeout_s: int
    request_timeout_ms: int
    concurrent_requests: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def of(config: Config, model: Mapping[str, Any]) -> Container:
    """The container that the configuration asks for."""
    settings, own = config.deployment, config.deployment.server == "score"
    kind, name = _kind_and_name(config)
    at_a_time = settings.max_concurrent_requests_per_instance
    served = config.model.name if settings.adapters else str(model["name"])
    common = variables_of(config, served) | {"HF_HUB_OFFLINE": "1"}
    return Container(
        server=settings.server,
        model=f"{model['name']}:{model['version']}",
        environment=f"{name}:{environments.version_of(kind, settings.image or '', with_vllm(config))}",
        script=_digest_of_code() if own else "",
        variables=common | (_of_inference_server(config) if own else {}),
        size=settings.instance_type or "",
        count=settings.instance_count,
        startup_timeout_s=settings.startup_timeout_s,
        request_timeout_ms=settings.request_timeout_ms,
        concurrent_requests=at_a_time,
    )


def _kind_and_name(config: Config) -> tuple[str, str]:
    serve = config.environment.serve
    return ("serve", serve) if config.deployment.server == "score" else ("vllm", f"{serve}-vllm")


def with_vllm(config: Config) -> bool:
    """Whether the image of score.py is to hold a vLLM."""
    return config.deployment.server == "score" and config.deployment.engine == "vllm"


def _of_inference_server(config: Config) -> dict[str, str]:
    settings, fronts = config.deployment, _fronts(config)
    options = {
        "worker-class": "gthread",  # one thread would leave / unanswered while the model generates
        "threads": settings.max_concurrent_requests_per_instance + SPARE_THREADS,
        "graceful-timeout": math.ceil(settings.request_timeout_ms / 1000),
    }
    return {
        "GUNICORN_CMD_ARGS": " ".join(f"--{name} {value}" for name, value in options.items()),
        "WORKER_COUNT": str(fronts),
        "FTKIT_FRONT_PROCESSES": str(fronts),
        "WORKER_TIMEOUT": str(settings.startup_timeout_s + 60),  # a loading worker gives no sign of life
        "SCORING_TIMEOUT_MS": str(settings.request_timeout_ms),
        "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",  # it would wait for the end of a stream, and keep what was said
    }


def _fronts(config: Config) -> int:
    """Processes of score.py before its vLLM; one with another engine."""
    settings = config.deployment
    cores = CORES.match(settings.instance_type or "")
    return front_processes(settings.front_processes, int(cores[1]) if cores else 1) if with_vllm(config) else 1


def _code() -> dict[Path, str]:
    """What an endpoint gets of ftkit: each file with its path there, the scoring script on top."""
    inside = [
        PACKAGE / "__init__.py",
        PACKAGE / "serving" / "__init__.py",
        *(file for pattern in MODULES for file in PACKAGE.glob(pattern)),
    ]
    return {SCORING_SCRIPT: SCORING_SCRIPT.name} | {file: str(file.relative_to(PACKAGE.parent)) for file in inside}


def _digest_of_code() -> str:
    code = sorted((path, sha256(file)) for file, path in _code().items())
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def ensure_environment(workspace: Workspace, config: Config, say: Say) -> None:
    """Make sure that the image's environment is in the workspace."""
    kind, name = _kind_and_name(config)
    custom = {"image": config.deployment.image or "", "routes": ROUTES} if kind == "vllm" else {}
    environments.ensure(workspace, kind, name, say, with_vllm=with_vllm(config), **custom)


@contextmanager
def deployment(
    container: Container, endpoint: str, name: str, reference: str, mark: Mark, count: int
) -> Iterator[ManagedOnlineDeployment]:
    """The SDK's entity; the files that it names exist within the block.

    Args:
        endpoint: its name.
        name: of the deployment.
        reference: of the model, ``azureml:name:version``.
        mark: of the command that makes it.
        count: of the VMs that it starts with, which autoscale may have made more than the container's.
    """
    probe = {"period": PROBE_PERIOD_S, "timeout": PROBE_TIMEOUT_S, "success_threshold": 1}
    loading = math.ceil(container.startup_timeout_s / PROBE_PERIOD_S)
    tags = {**mark.tags, MODEL: container.model, DIGEST: container.digest, SERVER: container.server}
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "score")  # its name goes into the address of the upload
        for file, path in _code().items():
            (code / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, code / path)
        yield ManagedOnlineDeployment(
            name=name,
            endpoint_name=endpoint,
            model=reference,
            environment=f"azureml:{container.environment}",
            code_configuration=CodeConfiguration(str(code), SCORING_SCRIPT.name) if container.script else None,
            environment_variables=dict(container.variables),
            instance_type=container.size,
            instance_count=count,
            scale_settings=DefaultScaleSettings(),
            request_settings=OnlineRequestSettings(
                request_timeout_ms=container.request_timeout_ms,
                max_concurrent_requests_per_instance=container.concurrent_requests,
            ),
            readiness_probe=ProbeSettings(initial_delay=PROBE_PERIOD_S, failure_threshold=loading, **probe),
            liveness_probe=ProbeSettings(initial_delay=container.startup_timeout_s, failure_threshold=3, **probe),
            tags=tags,
        )
