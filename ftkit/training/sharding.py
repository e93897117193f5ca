"""FSDP2 through accelerate, on CPU processes as well.

accelerate (1.15) takes its FSDP plugin on GPUs and other accelerators alone: processes on CPUs train on with DDP, and
nothing says so. ``tests/training/test_sharding.py`` has a canary that fails when upstream has cured it; then
``shard_on_cpus`` can go.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

CONFIG: dict[str, Any] = {
    "version": 2,
    "transformer_layer_cls_to_wrap": ["GptOssDecoderLayer"],
    "state_dict_type": "SHARDED_STATE_DICT",
}
"""``fsdp_config``: a layer is gathered at a time, and each process writes its own part of a checkpoint."""


def shard_on_cpus() -> None:
    """Have accelerate shard where the process group is one of CPUs; to be called when it has begun."""
    if not torch.cuda.is_available():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
