"""stage=deploy: serve the registered model; locally by the real Azure ML inference server, on 127.0.0.1 alone.

python -m ftkit experiment=tiny stage=deploy
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ftkit.platforms import local_endpoint, local_store
from ftkit.records import Record
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Start the server, wait until it is healthy, stop the one that it replaces.

    Raises:
        StageError: the port is taken, or the model does not load within ``deployment.startup_timeout_s``.
    """
    settings = context.config.deployment
    registered = context.needs["register"].record.result
    model = local_store.get(context.store, "models", registered["name"], registered["version"])
    endpoint = local_endpoint.start(
        endpoint_name=settings.endpoint_name,
        deployment_name=settings.deployment_name,
        model_dir=Path(model.path),
        state_dir=context.store / "endpoints",
        port=settings.port,
        startup_timeout_s=settings.startup_timeout_s,
        request_timeout_ms=settings.request_timeout_ms,
        max_concurrent_requests=settings.max_concurrent_requests_per_instance,
        model=model.id,
        progress=context.say,
    )
    share = endpoint.traffic[endpoint.deployment_name]
    summary = f"{endpoint.deployment_name} serves {model.id} with {share} % of the traffic at {endpoint.scoring_uri}"
    return Made(summary, result={**asdict(endpoint), "log": str(endpoint.log)})


def still_there(context: Context, record: Record) -> bool:
    """Whether the server that the record names is still running."""
    found = local_endpoint.find(context.store / "endpoints", context.config.deployment.endpoint_name)
    return found is not None and found.pid == record.result["pid"]
