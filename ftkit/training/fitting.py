"""What ``auto`` stands for on the machine that trains, and what follows when its memory has run out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ftkit.config.schema import Config
from ftkit.data.row_lengths import RowLengths, longest_of, row_lengths
from ftkit.families import family_of
from ftkit.models.loading import holds_mxfp4
from ftkit.models.training_memory import GIB
from ftkit.training.choice import Choice, choices, is_open, note_ran_out, predicted_gib, ran_out
from ftkit.training.dataset import lengths_of, read_rows


def settled_here(
    config: Config, lengths: RowLengths | None, checkpoints: Path, say: Callable[[str], None]
) -> Config:  # fmt: skip
    """The configuration with numbers in the place of every auto, which are said; the same if there is none.

    Args:
        config: as the user gave it.
        lengths: of ``lengths_for``.
        checkpoints: where word was left of what has run out of memory.
        say: prints a line.
    """
    if not is_open(config):
        return config
    chosen = _fitting(config, lengths, ran_out(checkpoints))[0]
    has = at_hand(config).compute.gib_per_gpu
    size = f": {chosen.gib:.1f} of {has:.1f} GiB predicted" if has else ""
    say(f"chosen: {chosen}{size}")
    return chosen.config


def lengths_for(config: Config, tokens: Path) -> RowLengths | None:
    """Lengths of the training rows in ``tokens``, where anything is left to choose and rows are not packed.

    Raises:
        StageError: the file is missing, or of another kind.
    """
    if not is_open(config) or config.sft.packing:
        return None
    lengths = lengths_of(read_rows(tokens), "input_ids")
    return row_lengths(longest_of(lengths), int(lengths.sum()), len(lengths), config)


def next_smaller(
    config: Config, failed: Config, lengths: RowLengths | None, checkpoints: Path
) -> Choice | None:  # fmt: skip
    """What to go on with after ``failed``, of which word is left; None where nothing smaller can be chosen."""
    if not is_open(config):
        return None
    needed = predicted_gib(failed, lengths)
    note_ran_out(checkpoints, needed)
    smaller = _fitting(config, lengths, needed)[0]
    return smaller if smaller.gib < needed else None


def at_hand(config: Config) -> Config:
    """The same with the memory of the GPU that is here, if one is."""
    if not torch.cuda.is_available():
        return config
    gib = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    return config.model_copy(update={"compute": config.compute.model_copy(update={"gib_per_gpu": gib})})


def _fitting(config: Config, lengths: RowLengths | None, below: float | None) -> list[Choice]:
    here = at_hand(config)
    family = family_of(config.model.architecture.model_type)
    plain = torch.cuda.is_available() and family.training.why_plain(config, torch.device("cuda")) is not None
    found = choices(here, lengths, below=below, plain=plain)
    if config.model.weights == "auto" and found[0].config.model.weights == "mxfp4" and not holds_mxfp4(config.model):
        found = choices(here, lengths, below=below, plain=plain, dense=True)
    return found
