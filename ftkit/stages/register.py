"""stage=register: keep the merged model as an immutable version of a registered model.

python -m ftkit experiment=tiny stage=register registration.model_name=my-reasoner
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ftkit.platforms import local_store
from ftkit.records import Record
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Register ``outputs/<run>/merged``; identical content is the same version."""
    config, merged = context.config, context.needs["merge"]
    tags = {
        "run": config.run.name,
        "base": config.model.pretrained_model_name_or_path,
        "data": merged.record.result["data"],
        "adapter": f"r={config.lora.r}, alpha={config.lora.lora_alpha}",
    }
    settings = config.registration
    content = merged.run_folder / merged.record.result["folder"]
    asset, new = local_store.register(
        context.store, "models", settings.model_name, content, type=settings.type, tags=tags
    )
    what = "new version" if new else "same content as before"
    return Made(f"model {asset.id} ({asset.type}, {what}) in {asset.path}", result=asdict(asset))


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store."""
    return Path(record.result["path"]).is_dir()
