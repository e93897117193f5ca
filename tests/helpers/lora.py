"""Settings of LoRA for the small model."""

from __future__ import annotations

from typing import Any

from ftkit.config.groups import Lora

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(**changes: Any) -> Lora:
    return Lora(
        **{
            "r": 2,
            "lora_alpha": 4,
            "lora_dropout": 0.0,
            "target_modules": "all-linear",
            "target_parameters": EXPERTS,
            "use_rslora": False,
            "init_lora_weights": True,
        }
        | changes
    )
