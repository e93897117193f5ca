"""The model as dpo and grpo train it, after TRL's trainer has set it up."""

from __future__ import annotations

from typing import Any, cast

from peft import PeftModel

from ftkit.models.joined_rows import join_rows
from ftkit.models.lora import bare_model


def make_policy(model: Any, *, joins: bool) -> None:
    """Take TRL's copy of the adapter out, which changes nothing yet: the reference is the model without any.

    Args:
        model: PEFT's, of TRL's trainer.
        joins: computes the rows of a batch as one, without their padding.
    """
    policy = cast(PeftModel, model)
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")
    if joins:
        join_rows(bare_model(policy))
