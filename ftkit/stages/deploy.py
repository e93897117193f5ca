"""stage=deploy: serve the registered model; here by the real Azure ML inference server, or at a managed endpoint.

python -m ftkit experiment=tiny stage=deploy
python -m ftkit stage=deploy deployment.rollout=[10,50,100]
python -m ftkit experiment=tiny stage=deploy 'deployment.adapters={ja: outputs/ja, law: outputs/law}'
python -m ftkit stage=deploy deployment.engine=vllm 'deployment.adapters={ja: outputs/ja}'
"""

from __future__ import annotations

from ftkit.config.schema import Config
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.adapters import digests_of
from ftkit.records import Record


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of the adapters that are served by name, and the base that they are served on."""
    found = {f"adapter {name}": digest for name, digest in digests_of(config).items()}
    base = f"{config.model.pretrained_model_name_or_path} {config.model.revision or ''}"
    return found | ({"base": base} if found else {})


def run(context: Context) -> Made:
    """Start the new version, or adapters on their base, wait until it is healthy, end what it replaces.

    Raises:
        StageError: it did not become healthy or does not answer; what served before still does.
    """
    registered = context.needs.get("register")
    deployed = context.platform.deploy(registered.record.result if registered else {}, context.say)
    return Made(deployed.summary, result=deployed.result)


def still_there(context: Context, record: Record) -> bool:
    """Whether the deployment that the record names still serves."""
    return context.platform.serves(record.result)
