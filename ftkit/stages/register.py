"""stage=register: keep the merged model as an immutable version of a registered model.

python -m ftkit experiment=tiny stage=register registration.model_name=my-reasoner
"""

from __future__ import annotations

from dataclasses import asdict

from ftkit.config.gate import broken_rules
from ftkit.errors import StageError
from ftkit.lineage import find
from ftkit.records import Record
from ftkit.stages import BY_NAME, Context, Made


def run(context: Context) -> Made:
    """Register ``outputs/<run>/merged``, where it lies; identical content is the same version.

    Raises:
        StageError: a rule of ``deployment.gate`` is broken, or the model has not been evaluated.
    """
    config, merged = context.config, context.needs["merge"]
    if config.deployment.gate:
        _pass_gate(context)
    tags = {
        "run": config.run.name,
        "base": config.model.pretrained_model_name_or_path,
        "data": merged.record.result["data"],
        "adapter": f"r={config.lora.r}, alpha={config.lora.lora_alpha}" if config.lora else "none: all weights trained",
        **merged.record.result["trained"],
    }
    content = merged.address(merged.record.result["folder"])
    name, digest = config.registration.model_name, merged.record.result["digest"]
    asset, new = context.platform.register(name, content, digest, tags)
    what = "new version" if new else "same content as before"
    return Made(f"model {asset.id} ({asset.type}, {what}) in {asset.path}", result=asdict(asset))


def _pass_gate(context: Context) -> None:
    config = context.config
    evaluated = find(config, BY_NAME["evaluate"], "register").record
    if evaluated.inputs["merge"] != context.needs["merge"].record.fingerprint:
        raise StageError("the model has been merged again since it was evaluated", cure="stage=evaluate,register")
    if broken := broken_rules(config.deployment.gate, evaluated.result):
        raise StageError(
            f"the gate is closed: {'; '.join(broken)}",
            where=f"{config.run.outputs}/{config.run.name}/evaluate, {evaluated.result['questions']} questions",
            cure="train longer or on more rows, or another deployment.gate",
        )
    context.say(f"gate: {', '.join(config.deployment.gate)}, all kept")


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store."""
    return context.platform.holds(record.result)
