"""stage=publish: keep the prepared rows as a versioned data asset; identical content is the same version.

python -m ftkit experiment=tiny stage=publish
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from ftkit.files import linked_copy
from ftkit.records import Record
from ftkit.stages import Context, Made
from ftkit.stages.prepare import TOKENS


def run(context: Context) -> Made:
    """Register parquet, JSONL and token rows as the asset ``dataset.asset_name``."""
    name = context.config.dataset.asset_name
    prepared = context.needs["prepare"]
    tags = {key: prepared.record.result[key] for key in ("rows", "train", "heldout", "rejected")}
    tags |= {"source": context.config.dataset.path, "model": context.config.model.name}
    with tempfile.TemporaryDirectory(dir=context.run_folder) as folder:
        content = Path(folder, name)
        content.mkdir()
        for file in (f"{name}.parquet", f"{name}.jsonl", TOKENS):
            linked_copy(prepared.folder / file, content / file)
        asset, new = context.platform.publish(name, content, tags)
    what = "new version" if new else "same content as before"
    return Made(f"data asset {asset.id} ({what}) in {asset.path}", result=asdict(asset))


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store."""
    return context.platform.holds(record.result)


def published_rows(context: Context) -> Path:
    """The folder with the published rows: in the store, or where an Azure ML job has mounted them."""
    return Path(context.config.dataset.folder or context.needs["publish"].record.result["path"])
