"""Adapters go where they were asked for, or nothing is trained. The guards are in ``add_lora``."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.lora import EXPERTS, lora
from transformers import GptOssForCausalLM

from ftkit.errors import StageError
from ftkit.models.lora import add_lora, check_placement


def test_attention_and_every_expert(model: GptOssForCausalLM) -> None:
    wrapped, trained = add_lora(model, lora())
    assert (trained.modules, trained.tensors) == (2 * 4, 2 * 2)
    # r × (in + out): q, k, v, o of 32 and 16 wide; experts of 32 × 64 and 32 × 32, four of them.
    assert trained.attention == 2 * 2 * ((32 + 32) + (32 + 16) + (32 + 16) + (32 + 32))
    assert trained.experts == 2 * 2 * 4 * ((32 + 64) + (32 + 32))
    assert not any(p.requires_grad for name, p in wrapped.named_parameters() if "router" in name or "lora" not in name)


def test_experts_of_one_layer_alone(model: GptOssForCausalLM) -> None:
    _, trained = add_lora(model, lora(target_parameters=["layers.1.mlp.experts.down_proj"], target_modules=[]))
    assert (trained.modules, trained.tensors, trained.attention) == (0, 1, 0)


def test_upstream_still_trains_no_expert_on_a_typo() -> None:
    """Canary: when this fails, PEFT refuses by itself what add_lora refuses."""
    import warnings

    from helpers.small_model import small_config
    from peft import LoraConfig, get_peft_model

    bare = GptOssForCausalLM(small_config())
    with warnings.catch_warnings(record=True):
        typo = LoraConfig(
            target_modules="all-linear", target_parameters=["mlp.experts.gate_up_proj", "mlp.expert.down_proj"]
        )
        wrapped = get_peft_model(bare, typo)
    assert not any("down_proj" in name for name, p in wrapped.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("changes", "what", "cure"),
    [
        (
            {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.expert.down_proj"]},
            "'mlp.expert.down_proj'",
            "mlp.experts.down_proj",
        ),
        ({"target_parameters": ["layers.7.mlp.experts.down_proj"]}, "'layers.7.mlp.experts.down_proj'", "down_proj"),
        ({"target_parameters": ["mlp.router.weight"]}, "'mlp.router.weight'", "mlp.experts"),
        ({"target_parameters": ["gate_up_proj_bias"]}, "'gate_up_proj_bias'", "gate_up_proj?"),
        ({"target_modules": ["q_proj", "qproj"]}, "'qproj'", "q_proj"),
        ({"target_modules": ["lm_head"]}, "'lm_head'", "self_attn"),
        ({"target_modules": r".*\.attn\..*"}, "attn", "self_attn"),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1", "lora=attention"),
        ({"target_modules": [], "target_parameters": None}, "neither", "lora=experts"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused(
    model: GptOssForCausalLM, changes: dict[str, Any], what: str, cure: str
) -> None:
    """Guards: ``_refuse`` in _wanted_modules and _wanted_tensors, and the first lines of add_lora."""
    with pytest.raises(StageError) as caught:
        add_lora(model, lora(**changes))
    assert what in caught.value.what and cure in caught.value.cure


def test_adapters_in_other_places_than_asked_for_are_refused(model: GptOssForCausalLM) -> None:
    wrapped, _ = add_lora(model, lora())
    modules = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}
    tensors = {f"model.layers.{i}.{e}" for i in range(2) for e in EXPERTS}
    assert check_placement(wrapped, modules, tensors).tensors == 4
    with pytest.raises(StageError, match=r"1 adapted unasked, model.layers.0.mlp.experts.down_proj"):
        check_placement(wrapped, modules, tensors - {"model.layers.0.mlp.experts.down_proj"})
    with pytest.raises(StageError, match="1 not adapted, lm_head"):
        check_placement(wrapped, modules | {"lm_head"}, tensors)


def test_a_trained_router_is_refused(model: GptOssForCausalLM) -> None:
    wrapped, _ = add_lora(model, lora(target_parameters=None))
    next(p for name, p in wrapped.named_parameters() if "router" in name).requires_grad_(True)
    with pytest.raises(StageError, match="router"):
        check_placement(wrapped, {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}, set())
