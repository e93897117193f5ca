"""stage=deploy: serve the registered model; here by the real Azure ML inference server, or at a managed endpoint.

python -m ftkit experiment=tiny stage=deploy
python -m ftkit stage=deploy deployment.rollout=[10,50,100]
"""

from __future__ import annotations

from ftkit.records import Record
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Start the new version, wait until it is healthy, end the one that it replaces.

    Raises:
        StageError: it did not become healthy or does not answer; what served before still does.
    """
    deployed = context.platform.deploy(context.needs["register"].record.result, context.say)
    return Made(deployed.summary, result=deployed.result)


def still_there(context: Context, record: Record) -> bool:
    """Whether the deployment that the record names still serves."""
    return context.platform.serves(record.result)
