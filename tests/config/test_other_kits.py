"""Keys and values of the libraries that do harm here, and names that other kits have for ours, lead to what to type."""

from __future__ import annotations

import pytest
from helpers.refusals import cures, refused

from ftkit.config.other_kits import ELSEWHERE, REFUSED, REFUSED_VALUES
from ftkit.config.problems import all_keys

KEYS = {
    "sft.save_only_model": "sft.save_total_limit=1",
    "sft.ignore_data_skip": "leave it out",
    "sft.packing_strategy": "sft.packing=true",
    "sft.padding_free": "sft.packing=true",
    "sft.assistant_only_loss": "leave it out",
    "sft.completion_only_loss": "leave it out",
    "lora.use_dora": "lora.use_rslora=true",
    "lora.lora_bias": "leave it out",
    "lora.rank_pattern": "lora.r=16",
    "lora.alpha_pattern": "lora.lora_alpha=32",
    "lora.modules_to_save": "leave it out",
    "sft.save_strategy": "sft.save_steps=50",
    "sft.resume_from_checkpoint": "leave it out",
    "sft.group_by_length": "sft.packing=true",
    "sft.push_to_hub": "registration.hub=",
}


@pytest.mark.parametrize("key", KEYS)
def test_key_of_a_library_that_does_harm(key: str) -> None:
    """Guard: its line in problems.REFUSED."""
    problem = refused(f"+{key}=true")[key]
    assert problem.what not in ("", "unknown key")
    cures(problem, KEYS[key], [])


VALUES = {
    "model.attn_implementation": dict.fromkeys(
        ("flash_attention_2", "flash_attention_3", "paged_attention"), "model.attn_implementation=auto"
    ),
    "lora.init_lora_weights": dict.fromkeys(
        ("pissa", "olora", "orthogonal", "loftq", "eva", "corda", "lora_ga"), "lora.init_lora_weights=gaussian"
    ),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in VALUES for value in VALUES[key]])
def test_value_of_a_library_that_does_harm(key: str, value: str) -> None:
    """Guard: its place in problems.REFUSED_VALUES."""
    problem = refused(f"{key}={value}")[key]
    assert problem.what.startswith(f"{value} ")
    cures(problem, VALUES[key][value], [f"{key}={value}"])


def test_no_key_or_value_is_refused_without_a_test() -> None:
    assert REFUSED.keys() == KEYS.keys()
    assert {key: set(values) for key, values in REFUSED_VALUES.items()} == {key: set(VALUES[key]) for key in VALUES}


def test_names_of_other_kits_lead_to_keys_that_exist() -> None:
    """Dictionaries take any key below them."""
    known = {*all_keys(), "sft.gradient_checkpointing_kwargs.use_reentrant"}
    assert set(ELSEWHERE.values()) <= known


def test_keys_beside_no_lora_are_refused() -> None:
    cures(refused("lora=none", "lora.r=8")["lora"], "lora=experts", ["lora=none", "lora.r=8"])
