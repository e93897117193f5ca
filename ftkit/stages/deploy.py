"""stage=deploy: serve the registered model; here by the real Azure ML inference server, or at a managed endpoint.

python -m ftkit experiment=tiny stage=deploy
python -m ftkit stage=deploy deployment.rollout=[10,50,100]
python -m ftkit experiment=tiny stage=deploy 'deployment.adapters={ja: outputs/ja, law: outputs/law}'
"""

from __future__ import annotations

from ftkit.config.schema import Config
from ftkit.files import tree_digest
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.local.adapters import find_adapters
from ftkit.records import Record


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of the adapters that are served by name."""
    return {f"adapter {name}": tree_digest(folder) for name, folder in find_adapters(config).items()}


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
