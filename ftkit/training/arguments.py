"""What every method hands to TRL alike: optimiser, schedule, batches, checkpoints and evaluations of ``config.sft``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ftkit.config.schedules import given_arguments
from ftkit.config.schema import Config
from ftkit.families import family_of
from ftkit.processes import one_of_several
from ftkit.training import sharding

OURS = {
    *("max_length", "packing", "verify_packing", "save_total_limit", "save_minutes"),
    *("early_stopping_patience", "load_best_model_at_end", "keep_attention"),
}
"""Keys of ``sft`` that ftkit acts on itself: TRL would cut rows, pack without masks, count checkpoints that were
cut off, and forget on resuming how long it has been patient."""


def shared_arguments(config: Config, checkpoints: Path) -> dict[str, Any]:
    """Arguments of a TRL config by name: every key of ``config.sft`` under its own, but for ``OURS``."""
    cpu = not torch.cuda.is_available()
    given = {key: value for key, value in config.sft.model_dump().items() if key not in OURS}
    given["per_device_train_batch_size"] = config.sft.rows_at_a_time
    given["gradient_checkpointing"] = bool(given["gradient_checkpointing"])
    given["lr_scheduler_kwargs"] = given_arguments(config.sft)
    if not given["gradient_checkpointing"]:
        given["gradient_checkpointing_kwargs"] = None
    family = family_of(config.model.architecture.model_type)
    return given | {
        "output_dir": str(checkpoints),
        "remove_unused_columns": False,
        "save_total_limit": None,
        "save_only_model": False,
        "ignore_data_skip": False,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": cpu,
        "ddp_backend": ("gloo" if cpu else "nccl") if one_of_several() else None,
        "fsdp_config": sharding.config_for(family) if config.sft.fsdp else None,
        "dataloader_pin_memory": not cpu,
        "accelerator_config": {"non_blocking": not cpu},
    }


def with_precision(args: Any, config: Config) -> Any:
    """The same arguments; where weights are sharded, with what ``sharding.precision`` computes in."""
    if args.fsdp_plugin_args:
        args.fsdp_plugin_args |= sharding.precision(config.sft.bf16)
    return args
