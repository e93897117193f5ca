"""stage=publish: keep the prepared rows as a versioned data asset; identical content is the same version.

python -m ftkit experiment=tiny stage=publish
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ftkit.files import joined_digest, linked_copy, scratch, sha256
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.local.store import check_whole
from ftkit.processes import first_process
from ftkit.records import Record
from ftkit.stages.prepare import TOKENS


def run(context: Context) -> Made:
    """Register parquet, JSONL and token rows as the asset ``dataset.asset_name``."""
    name = context.config.dataset.asset_name
    prepared = context.needs["prepare"]
    tags = {key: prepared.record.result[key] for key in ("rows", "train", "heldout", "rejected")}
    tags |= {"source": context.config.dataset.places, "model": context.config.model.name}
    files = (f"{name}.parquet", f"{name}.jsonl", TOKENS)
    known = prepared.record.digests
    digest = joined_digest({f: known.get(f"prepare/{f}") or sha256(prepared.folder / f) for f in files})
    with scratch(context.folder / "content") as folder:
        content = folder / name
        content.mkdir(parents=True)
        for file in files:
            linked_copy(prepared.folder / file, content / file)
        asset, new = context.platform.publish(name, content, digest, tags, context.say)
    what = "new version" if new else "same content as before"
    return Made(f"data asset {asset.id} ({what}) in {asset.path}", result=asdict(asset))


def still_there(context: Context, record: Record) -> bool:
    """Whether the version that the record names is still in the store, unchanged."""
    return context.platform.holds(record.result)


def published_rows(context: Context) -> Path:
    """The folder with the published rows: in the store, or where a job has mounted them.

    Raises:
        StageError: they are gone, or not those that were published.
    """
    published = context.needs["publish"].record.result
    folder = Path(context.config.job.data or published["path"])
    if first_process():
        again = f"stage=publish,{context.stage} force=true"
        check_whole(folder, published["digest"], f"data asset {published['name']}:{published['version']}", again)
    return folder
