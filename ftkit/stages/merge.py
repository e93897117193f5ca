"""stage=merge: merge the adapter into the base, save, reload, compare; only a model that passed stays.

python -m ftkit experiment=tiny stage=merge
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from ftkit.data.conversations import system_message
from ftkit.evaluation.card import write_card
from ftkit.files import tree, tree_digest
from ftkit.stages import Context, Made
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows
from ftkit.training import require_extra

FOLDER = "merged"
FIGURES = ("global_step", "last_loss", "eval_loss", "tokens")
"""Of the training, which go with the model where it is registered."""


def run(context: Context) -> Made:
    """Write ``outputs/<run>/merged``.

    Raises:
        StageError: the reloaded model is not the base with the adapter; no ``merged`` is left then.
    """
    require_extra()
    from ftkit.training.merge import merge

    config, training, published = context.config, context.needs["train"], context.needs["publish"]
    out = context.run_folder / FOLDER
    trained = training.run_folder / training.record.result["folder"]
    result = merge(
        config,
        trained=trained,
        tokens=published_rows(context) / TOKENS,
        out=out,
        serving={
            "name": config.registration.model_name,
            "system": system_message(config.dataset),
            "reasoning_effort": config.dataset.reasoning_effort,
        },
    )
    files = list(tree(out).values())  # the card, which an evaluation writes anew, is none of them
    size = sum(path.stat().st_size for path in files) / 2**20
    data = f"{published.record.result['name']}:{published.record.result['version']}"
    kept = {**asdict(result), "folder": FOLDER, "data": data, "digest": _digest(context, trained)}
    kept["trained"] = {
        f"train.{name}": figure for name in FIGURES if (figure := training.record.result.get(name)) is not None
    }
    write_card(out, config, trained=training.record, data=published.record, merged=kept)
    return Made(f"{_shown(size)} in {out}; {result.summary}", files, kept)


def _shown(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def _digest(context: Context, trained: Path) -> str:
    """Tells merged models apart without reading tens of GiB: base, settings and trained weights decide them."""
    return hashlib.sha256(f"{context.fingerprint} {tree_digest(trained)}".encode()).hexdigest()
