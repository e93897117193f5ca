"""stage=teardown: list what runs, ask, stop it. Files stay.

python -m ftkit experiment=tiny stage=teardown yes=true
"""

from __future__ import annotations

import sys

from ftkit.errors import StageError
from ftkit.platforms import local_endpoint
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Stop the endpoint ``deployment.endpoint_name``.

    Raises:
        StageError: there is nobody to ask and ``yes=true`` was not given.
    """
    name = context.config.deployment.endpoint_name
    endpoint = local_endpoint.find(context.store / "endpoints", name)
    if endpoint is None:
        return Made(f"the endpoint {name} is not running; nothing to do")
    context.say(
        f"{name}: {endpoint.deployment_name} serves {endpoint.model} at {endpoint.scoring_uri} (process {endpoint.pid})"
    )
    if not context.config.yes and not _agreed("Stop it?"):
        return Made("left as it is")
    local_endpoint.stop(endpoint)
    return Made(f"stopped {name}; models, data and runs stay in {context.config.run.outputs}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise StageError("teardown asks before it stops anything, and there is nobody to ask", cure="yes=true")
    return input(f"{'':13}{question} [y/N] ").strip().lower() in ("y", "yes")
