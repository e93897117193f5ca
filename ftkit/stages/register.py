"""stage=register: keep the merged model as an immutable version of a registered model.

python -m ftkit experiment=tiny stage=register registration.model_name=my-reasoner
python -m ftkit experiment=tiny stage=register registration.hub=owner/name
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ftkit.config.gate import broken_guard, broken_rules
from ftkit.config.stages import BY_NAME
from ftkit.errors import StageError
from ftkit.evaluation.card import card_of_part
from ftkit.pipeline.lineage import find
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.hub import push
from ftkit.records import Record


def run(context: Context) -> Made:
    """Register ``outputs/<run>/merged``, where it lies; identical content is the same version.

    Raises:
        StageError: a rule of ``registration.gate`` is broken, or the model has not been evaluated; or the hub, where
            ``registration.hub`` names a repository, cannot be pushed to.
    """
    config, merged = context.config, context.needs["merge"]
    if config.is_gated:
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
    asset, new = context.platform.register(name, content, digest, tags, context.say)
    what = "new version" if new else "same content as before"
    pushed = _push(context, Path(content)) if config.registration.hub else {}
    also = f"; on the hub: {', '.join(pushed.values())}" if pushed else ""
    result = asdict(asset) | ({"hub": pushed} if pushed else {})
    return Made(f"model {asset.id} ({asset.type}, {what}) in {asset.path}{also}", result=result)


def _push(context: Context, merged: Path) -> dict[str, str]:
    """Push what ``registration.hub_parts`` names; the addresses of its repositories, by part."""
    config, addresses = context.config, {}
    registration, name = config.registration, str(config.registration.hub)
    for part in dict.fromkeys(registration.hub_parts):
        folder = merged
        if part == "adapter":
            trained = find(config, BY_NAME["train"], "register")
            folder = trained.run_folder / trained.record.result["folder"]
        elif part == "data":
            folder = Path(find(config, BY_NAME["publish"], "register").record.result["path"])
        addresses[part] = push(
            folder,
            name if part == "model" else f"{name}-{part}",
            "dataset" if part == "data" else "model",
            card="" if part == "model" else card_of_part(config, part, name),
            private=registration.hub_private,
            run=config.run.name,
            say=context.say,
        )
    return addresses


def _pass_gate(context: Context) -> None:
    config = context.config
    evaluated = find(config, BY_NAME["evaluate"], "register").record
    if evaluated.inputs["merge"] != context.needs["merge"].record.fingerprint:
        raise StageError("the model has been merged again since it was evaluated", cure="stage=evaluate,register")
    guard = config.evaluation.guard
    lost = broken_guard(guard.may_lose, evaluated.result["guard"]) if guard.path else ""
    if broken := [*broken_rules(config.registration.gate, evaluated.result), *([lost] if lost else [])]:
        raise StageError(
            f"the gate is closed: {'; '.join(broken)}",
            where=f"{config.run.outputs}/{config.run.name}/evaluate, {evaluated.result['questions']} questions",
            cure="train longer or on more rows, or another registration.gate"
            + (", or general rows beside yours (dataset=mix)" if lost else ""),
        )
    kept = [*config.registration.gate, *([f"guard {guard.path}"] if guard.path else [])]
    context.say(f"gate: {', '.join(kept)}, all kept")


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store, unchanged."""
    return context.platform.holds(record.result)
