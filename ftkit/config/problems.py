"""What pydantic finds wrong, in the user's words: dotted key, value, what would be right, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ftkit.config.fields import PATTERNS
from ftkit.config.overrides import nearest
from ftkit.config.schema import Config
from ftkit.errors import Problem

UNKNOWN_KEY = "unknown key"
ELSEWHERE = {
    "max_seq_length": "sft.max_length",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lr": "sft.learning_rate",
    "batch_size": "sft.per_device_train_batch_size",
    "epochs": "sft.num_train_epochs",
    "warmup_ratio": "sft.warmup_steps",
    "use_reentrant": "sft.gradient_checkpointing_kwargs.use_reentrant",
    "num_nodes": "compute.nodes",
    "instance_count": "compute.nodes",
    "gpus": "compute.gpus_per_node",
}
"""Names that other kits use, and the key that does the same here."""
REFUSED = {
    "sft.save_only_model": (
        "a run that resumes without its optimiser's state goes another way, and says nothing",
        "leave it out; sft.save_total_limit=1 needs the least room",
    ),
    "sft.ignore_data_skip": ("a resumed run would see its first rows again", "leave it out"),
    "sft.packing_strategy": (
        "TRL's strategies cut answers off, or let documents see each other",
        "sft.packing=true packs whole rows that cannot see each other",
    ),
    "sft.padding_free": ("documents would see each other", "sft.packing=true"),
    "sft.assistant_only_loss": (
        "would train earlier answers whose thinking the template has dropped",
        "leave it out: each answer is a row of its own, and the loss lies on it alone",
    ),
    "sft.completion_only_loss": ("is so already", "leave it out: the loss lies on the answer alone"),
    "lora.use_dora": ("PEFT has no DoRA on expert tensors", "lora.use_rslora=true, or a larger lora.r"),
    "lora.lora_bias": ("PEFT has no bias on expert tensors", "leave it out"),
}
"""Keys of the libraries that are left out on purpose: why, and what to write instead."""
NO_SINKS = "leaves gpt-oss's attention sinks out, or does not train them"
REFUSED_VALUES = {
    "model.attn_implementation": dict.fromkeys(
        ("sdpa", "flash_attention_2", "flash_attention_3", "paged_attention"),
        (NO_SINKS, "model.attn_implementation=ftkit_sinks, flex_attention or eager"),
    ),
    "lora.init_lora_weights": dict.fromkeys(
        ("pissa", "olora", "orthogonal", "loftq", "eva", "corda", "lora_ga"),
        ("needs more than PEFT can do on expert tensors", "lora.init_lora_weights=gaussian"),
    ),
}
"""Values of the libraries that are left out on purpose, likewise."""


def schema_problems(values: dict[str, Any], skip: Sequence[str] = ()) -> tuple[Config | None, list[Problem]]:
    """Validate against the schema.

    Args:
        values: the composed configuration as plain containers.
        skip: dotted keys that are known to be unset and reported elsewhere.

    Returns:
        The typed configuration and no problems, or None and all of them.
    """
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        found = [_problem(details) for details in error.errors(include_url=False)]
        problems = {problem.key: problem for problem in reversed(found) if problem.key not in skip}
        return None, list(reversed(problems.values()))


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if group := group_of(field.annotation):
            yield from all_keys(group, f"{prefix}{name}.")


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group that a field holds, be it always or unless it is null; None for a value."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def nearest_key(key: str) -> str | None:
    """The key that was probably meant: by another kit's name, by spelling within the group, then anywhere."""
    group, _, leaf = key.rpartition(".")
    if leaf.lower() in ELSEWHERE:
        return ELSEWHERE[leaf.lower()]
    keys = list(all_keys())
    siblings = [k for k in keys if k.rpartition(".")[0] == group]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    by_leaf = {k.rpartition(".")[2]: k for k in siblings}
    close = nearest(leaf, by_leaf)
    if same_leaf and not group:  # packing=false
        return same_leaf[0]
    return (by_leaf[close] if close else None) or (same_leaf[0] if same_leaf else None) or nearest(key, keys)


def _problem(details: ErrorDetails) -> Problem:
    key, annotation = _field(details["loc"])
    if details["type"] == "extra_forbidden" and key in REFUSED:
        return Problem(key, REFUSED[key][0], "", REFUSED[key][1])
    if details["type"] == "extra_forbidden":
        close = nearest_key(key)
        return Problem(
            key, UNKNOWN_KEY, "", f"did you mean {close}?" if close else "python -m ftkit --help lists the keys"
        )
    if details["type"] == "missing" and key.startswith("lora."):  # all of them at once, after lora=none
        cure = "lora=experts before other keys of lora, or begin the file with defaults: [experts, _self_]"
        return Problem("lora", "its other keys are missing, as in lora=none", "", cure)
    if details["type"] == "missing":
        return Problem(key, "is missing", "", f"set it: {key}=…, or begin the file with defaults: [default, _self_]")
    value, wanted = details["input"], expected(annotation, details)
    if found := REFUSED_VALUES.get(key, {}).get(str(value)):
        return Problem(key, f"{value} {found[0]}", "", found[1])
    what = f"{value!r} is not {wanted}"
    if isinstance(value, str) and (choices := _choices(annotation)) and (close := nearest(value, choices)):
        return Problem(key, what, "", f"did you mean {key}={close}?")
    return Problem(key, what, "")


def expected(annotation: Any, details: ErrorDetails | None = None) -> str:
    """What a field takes, in words: an integer above 0, true or false, one of …"""
    if details and details["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return details["msg"].removeprefix("Input should be ")
    if details and details["type"] == "string_pattern_mismatch":
        return PATTERNS[details.get("ctx", {})["pattern"]]
    origin = get_origin(annotation)
    if origin is Annotated:
        return expected(get_args(annotation)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " or ".join(expected(a) for a in get_args(annotation))
    if origin is list:
        return "a list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(annotation, str(annotation))


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)] if get_args(annotation) else []


def _field(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted key and type of the deepest schema field on pydantic's path; its union tags lie beyond that."""
    model: Any = Config
    path: list[str] = []
    for part in location:
        if (group := group_of(model)) is None:
            break
        path.append(str(part))
        field = group.model_fields.get(str(part))
        model = field.annotation if field else None
    return ".".join(path), model
