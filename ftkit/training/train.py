"""Fine-tuning with LoRA: from token rows to an adapter.

python -m ftkit experiment=tiny stage=train
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.schema import Config
from ftkit.training import require_extra

if TYPE_CHECKING:
    from ftkit.training.dataset import DataCounts
    from ftkit.training.lora import Trained


@dataclass(frozen=True)
class TrainResult:
    """What a finished training did.

    Attributes:
        global_step: optimiser steps done.
        max_steps: optimiser steps asked for; the same, unless it stopped early.
        first_loss: loss of the first line of metrics, in nats per loss token.
        last_loss: of the last line.
        eval_loss: on the held-out rows, of the adapter that was saved; None without evaluation.
        eval_thinking_loss: on their thinking alone; None also where they hold none.
        eval_answer_loss: on their answers alone.
        best_step: of the evaluation with the lowest loss.
        seconds: wall-clock seconds of training, interruptions not counted.
        tokens: trained on, padding not counted, on all processes.
        tokens_per_s: tokens ÷ seconds.
        peak_gib: highest memory of a process in GiB, on its GPU where it has one.
        counts: what became of the rows.
        trained: adapted modules and trained parameters.
        resumed_from: step of the checkpoint that this call went on from; None if it began anew.
        hardware: of its processes, ``2 × NVIDIA H100 80GB HBM3``.
    """

    global_step: int
    max_steps: int
    first_loss: float
    last_loss: float
    eval_loss: float | None
    eval_thinking_loss: float | None
    eval_answer_loss: float | None
    best_step: int | None
    seconds: float
    tokens: int
    tokens_per_s: float
    peak_gib: float
    counts: DataCounts
    trained: Trained
    resumed_from: int | None
    hardware: str


def train(
    config: Config, *, tokens: Path, out: Path, checkpoints: Path, say: Callable[[str], None] | None = None
) -> TrainResult:
    """Train, or go on from the newest whole checkpoint.

    Runs as the only process, or as one of several that torchrun or Azure ML has started (RANK, WORLD_SIZE,
    LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment); only the first prints and writes.

    Args:
        config: the whole configuration.
        tokens: parquet file of ``prepare``.
        out: folder for ``adapter/``, ``metrics.jsonl``, ``tensorboard/``, ``loss.png`` and ``library.log``.
        checkpoints: folder for checkpoints of this configuration and this data, and of no other.
        say: prints one line; standard output if not given.

    Raises:
        StageError: the model, the data or the disk is not as it should be, the loss is not a number, or training
        ended early.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last step was written.
    """
    require_extra()
    from ftkit.training.session import run

    return run(config, tokens=tokens, out=out, checkpoints=checkpoints, say=say)
