"""Weights over several processes: FSDP2 through accelerate, on CPUs as well, and DDP for what is trained alone.

accelerate (1.15) takes its FSDP plugin on GPUs and other accelerators alone: processes on CPUs train on with DDP, and
nothing says so. ``tests/training/test_sharding.py`` has a canary that fails when upstream has cured it; then
``shard_on_cpus`` can go.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel

from ftkit.families import Family


def config_for(family: Family) -> dict[str, Any]:
    """``fsdp_config``: a layer is gathered at a time, and each process writes its own part of a checkpoint.

    Rank 0 reads the model and sends the others their shares. Where the family names no layer class, accelerate takes
    those that transformers says must not be split.
    """
    config: dict[str, Any] = {
        "version": 2,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }
    return config | ({"transformer_layer_cls_to_wrap": [family.layer_class]} if family.layer_class else {})


def precision(bf16: bool) -> dict[str, Any]:
    """For accelerate's plugin: as it would have it in bfloat16, but for the loss, which stays in float32.

    Rounded to bfloat16, a loss of 12.79 would read 12.81. Gradients of several processes are added up in bfloat16:
    in float32, torch (2.13) fails on frozen weights as soon as it accumulates.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    return {"mixed_precision_policy": policy} if bf16 else {}


def shard_on_cpus() -> None:
    """Have accelerate shard where the process group is one of CPUs; to be called when it has begun."""
    if not torch.cuda.is_available():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def leave_frozen_alone(model: nn.Module) -> None:
    """Keep DDP from sending frozen weights and buffers: each process has read them from the same files.

    DDP would send all of them as it begins, which the hollow parameters of a base in MXFP4 do not allow, and the
    buffers, which hold that base, again in every forward pass.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    frozen += [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
