"""Merging: adapter and base become one model, which is loaded again and compared before it counts as done.

A model that was trained whole (lora=none) takes the same way: it is written in ``merge.format`` and compared.

python -m ftkit experiment=tiny stage=merge
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.training import require_extra


@dataclass(frozen=True)
class Rounding:
    """What rounding the experts to MXFP4 has cost.

    Attributes:
        weights: norm of the rounding error of all expert weights, as a share of the norm of the weights.
        logits: mean |logit after rounding − before|, in the precision that the merge was computed in.
    """

    weights: float
    logits: float

    def __str__(self) -> str:
        return f", and rounding to MXFP4 by {self.logits:.2g} (expert weights by {self.weights:.1%})"


@dataclass(frozen=True)
class MergeResult:
    """How the merged model, read back from its files, compares.

    Attributes:
        format: of its weights, ``merge.format``.
        rows: held-out rows compared.
        tokens: positions compared, each with a logit for every entry of the vocabulary.
        max_difference: largest |merged − trained| of a logit; trained is the base with its adapter, if it has one.
        mean_difference: mean of the same.
        mean_change: mean |trained − base|: what training changed.
        spread: standard deviation of the logits, against which the differences are held.
        parameters: of the merged model.
        rounding: what MXFP4 has cost; None in other formats.
    """

    format: str
    rows: int
    tokens: int
    max_difference: float
    mean_difference: float
    mean_change: float
    spread: float
    parameters: int
    rounding: Rounding | None

    @property
    def summary(self) -> str:
        """The comparison in a line."""
        return (
            f"read back and compared on {self.tokens} tokens of {self.rows} held-out rows in {self.format}: "
            f"logits differ by {self.mean_difference:.1e} on average and {self.max_difference:.1e} at most; "
            f"training changed them by {self.mean_change:.2g}{self.rounding or ''}"
        )


def merge(config: Config, *, trained: Path, tokens: Path, out: Path, serving: dict[str, Any]) -> MergeResult:
    """Merge a finished adapter into its base, or take the model that was trained, and write it to ``out``.

    Args:
        config: the whole configuration; ``merge.format`` is the format of the files.
        trained: folder that ``train`` wrote.
        tokens: parquet file of ``prepare``, for held-out rows to compare on.
        out: folder of the merged model; replaced when the new one has passed, else left as it is.
        serving: written to ``ftkit.json`` in it, for whoever serves the model.

    Raises:
        StageError: the training is unfinished or for another base, the disk is full, or the model that was read back
            is not what was merged; no folder is left then.
    """
    require_extra()
    from ftkit.training.merging import run

    return run(config, trained=trained, tokens=tokens, out=out, serving=serving)
