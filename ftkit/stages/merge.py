"""stage=merge: merge the adapter into the base, save, reload, compare; only a model that passed stays.

python -m ftkit experiment=tiny stage=merge
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit import __version__, records
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.config.stages import BY_NAME
from ftkit.console import counting, growing
from ftkit.digests import Digests
from ftkit.evaluation.card import CARD, write_card
from ftkit.files import size_in_words, tree, tree_digest, written_aside
from ftkit.packages import require_train_extra
from ftkit.pipeline.stage import Context, Made, settings_of
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows

if TYPE_CHECKING:
    from ftkit.export.merge import MergeResult

FOLDER = "merged"
PASSED = "passed.json"
"""Beside the record: what a merged model that has passed was made from, and how it compared. A conversion that failed,
or that is asked for later, does not merge again."""
FIGURES = ("global_step", "last_loss", "eval_loss", "tokens")
"""Of the training, which go with the model where it is registered."""


def run(context: Context) -> Made:
    """Write ``outputs/<run>/merged``, and ``merged.gguf`` beside it where ``merge.gguf`` names a converter.

    Raises:
        StageError: the reloaded model is not the base with the adapter; no ``merged`` is left then. Or it could not be
            converted; ``merged`` is left then.
    """
    require_train_extra()
    from ftkit.export import gguf

    config, training, published = context.config, context.needs["train"], context.needs["publish"]
    out, converted = context.run_folder / FOLDER, context.run_folder / gguf.FILE
    digest = _digest(context)
    result = None if config.force else _passed(context, digest)
    again = result is not None
    if result is None:
        if config.merge.gguf:
            gguf.rehearse(config, context.folder)
        result = _merge(context, digest)
        converted.unlink(missing_ok=True)  # of an earlier model
    else:
        context.say(f"{out} is there from before, and has passed; it is not merged again")
    data = f"{published.record.result['name']}:{published.record.result['version']}"
    kept = {**asdict(result), "folder": FOLDER, "data": data, "digest": digest}
    kept["trained"] = {
        f"train.{name}": figure for name in FIGURES if (figure := training.record.result.get(name)) is not None
    }
    if not again or not (out / CARD).exists():
        write_card(out, config, trained=training.record, data=published.record, merged=kept)
    files = list(_weights(out).values())
    size = size_in_words(sum(path.stat().st_size for path in files))
    if not config.merge.gguf:
        return Made(f"{size} in {out}; {result.summary}", files, kept)
    kept["gguf"] = gguf.convert(
        config, out, converted, parameters=result.parameters, folder=context.folder, say=context.say
    )
    summary = f"{size} in {out}, {size_in_words(kept['gguf']['bytes'])} in {converted}; {result.summary}"
    return Made(summary, [*files, converted], kept)


def _merge(context: Context, digest: str) -> MergeResult:
    """Merge and compare, and leave word of it."""
    from ftkit.export.merge import merge

    config, training, out = context.config, context.needs["train"], context.run_folder / FOLDER
    passed = context.folder / PASSED
    passed.unlink(missing_ok=True)
    result = merge(
        config,
        trained=training.run_folder / training.record.result["folder"],
        tokens=published_rows(context) / TOKENS,
        out=out,
        serving=ServingDefaults.of(config, config.registration.model_name),
        watched=partial(growing, say=context.say),
        counted=partial(counting, "weights read back", context.say),
    )
    kept = {"digest": digest, "files": _digests(context), "result": asdict(result)}
    with written_aside(passed) as aside:
        aside.write_text(json.dumps(kept), encoding="utf-8")
    return result


def _passed(context: Context, digest: str) -> MergeResult | None:
    """How the merged model that lies there compared, if it was made from just this and no file is gone or changed."""
    from ftkit.export.merge import MergeResult

    try:
        passed: Mapping[str, Any] = json.loads((context.folder / PASSED).read_text(encoding="utf-8"))
        same = passed["digest"] == digest and passed["files"] == _digests(context)
        return MergeResult.of(passed["result"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digests(context: Context) -> dict[str, str]:
    """Of the merged model's files, by name."""
    files = _weights(context.run_folder / FOLDER)
    found = Digests(context.run_folder)(files.values())
    return {name: found[path] for name, path in files.items()}


def _weights(folder: Path) -> dict[str, Path]:
    """The files of a merged model by name; the card, which an evaluation writes anew, is none of them."""
    return {name: path for name, path in tree(folder).items() if name != CARD}


def _digest(context: Context) -> str:
    """Tells merged models apart without reading tens of GiB: base, settings and trained weights decide them."""
    settings = settings_of(BY_NAME["merge"], context.config)
    del settings["merge.gguf"]
    training = context.needs["train"]
    inputs = {name: found.record.fingerprint for name, found in context.needs.items()}
    made_from = records.fingerprint("merge", settings, inputs, __version__)
    trained = training.run_folder / training.record.result["folder"]
    return hashlib.sha256(f"{made_from} {tree_digest(trained)}".encode()).hexdigest()
