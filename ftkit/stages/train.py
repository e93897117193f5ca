"""stage=train: LoRA fine-tuning on the published rows; a run that was cut off goes on from its last whole checkpoint.

python -m ftkit experiment=tiny stage=train
python -m ftkit experiment=tiny stage=train compute.gpus_per_node=2
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit.errors import StageError
from ftkit.files import tree
from ftkit.packages import require_train_extra
from ftkit.pipeline.stage import Context, Made
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows
from ftkit.training import launch as local_processes
from ftkit.training.artifact import folder_name


def run(context: Context) -> Made:
    """Train in this process, or in one process a GPU: those that Azure ML started, or else torchrun's.

    Raises:
        StageError: training could not start, diverged or was cut short.
    """
    _check_questions(context)
    tokens = published_rows(context) / TOKENS
    checkpoints = context.run_folder / "checkpoints" / context.fingerprint[:12]
    context.folder.mkdir(parents=True, exist_ok=True)
    result = _train(context, tokens, checkpoints)
    files = [path for name, path in tree(context.folder).items() if not name.startswith("tensorboard/")]
    speed = f"{result['tokens_per_s']:,.0f} tokens/s; curve in {context.folder}/loss.png"
    summary = f"{result['global_step']} steps, loss {result['first_loss']:.3f} → {result['last_loss']:.3f}, " + (
        speed if result["eval_loss"] is None else f"held out {result['eval_loss']:.3f}, {speed}"
    )
    return Made(
        summary, files, {**result, "folder": f"train/{folder_name(context.config)}", "checkpoints": str(checkpoints)}
    )


def _train(context: Context, tokens: Path, checkpoints: Path) -> dict[str, Any]:
    config = context.config
    require_train_extra()
    if config.processes > 1 and "RANK" not in os.environ:
        return local_processes.train(
            config,
            tokens=tokens,
            out=context.folder,
            checkpoints=checkpoints,
            frozen=context.run_folder / "config.yaml",
            label=context.label,
        )
    from ftkit.training.train import train

    return asdict(train(config, tokens=tokens, out=context.folder, checkpoints=checkpoints, label=context.label))


def _check_questions(context: Context) -> None:
    """See that evaluate, asked for in the same command, will have something to ask.

    Raises:
        StageError: it asks the held-out rows, and there is none.
    """
    config, published = context.config, context.needs["publish"].record.result
    held_out = published.get("tags", {}).get("heldout")
    if "evaluate" in config.stages and config.evaluation.path is None and str(held_out) == "0":
        share = max(0.2, config.dataset.heldout * 2)
        raise StageError(
            "no row is held out, so evaluate would have nothing to ask after the training",
            cure=f"dataset.heldout={share:g} with prepare and publish before, or evaluation.path=<a file of questions>",
        )
