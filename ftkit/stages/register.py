"""stage=register: keep the merged model as an immutable version of a registered model.

python -m ftkit experiment=tiny stage=register registration.model_name=my-reasoner
"""

from __future__ import annotations

from dataclasses import asdict

from ftkit.records import Record
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Register ``outputs/<run>/merged``, where it lies; identical content is the same version."""
    config, merged = context.config, context.needs["merge"]
    tags = {
        "run": config.run.name,
        "base": config.model.pretrained_model_name_or_path,
        "data": merged.record.result["data"],
        "adapter": f"r={config.lora.r}, alpha={config.lora.lora_alpha}",
    }
    content = merged.address(merged.record.result["folder"])
    name, digest = config.registration.model_name, merged.record.result["digest"]
    asset, new = context.platform.register(name, content, digest, tags)
    what = "new version" if new else "same content as before"
    return Made(f"model {asset.id} ({asset.type}, {what}) in {asset.path}", result=asdict(asset))


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store."""
    return context.platform.holds(record.result)
