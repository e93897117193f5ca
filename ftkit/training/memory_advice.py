"""What makes a run need less GPU memory, in order of what it costs, with the GiB that each saves; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.families import family_of
from ftkit.models.training_memory import GIB, footprint

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


@dataclass(frozen=True)
class Saving:
    """An override, what it costs, and the predicted GiB of a GPU that it saves and leaves in use."""

    override: str
    costs: str
    saves: float
    needs: float

    def __str__(self) -> str:
        return f"{self.override} (saves {self.saves:.1f} GiB; {self.costs})"


def savings(config: Config, longest: int | None = None) -> list[Saving]:
    """Those that save something, the cheapest first.

    Args:
        longest: tokens of the longest row, where it is known: rows that are not packed are no longer than that.
    """
    before = footprint(config).total / GIB
    found = []
    for override, costs, changed in _cheaper(config, longest):
        needs = footprint(changed).total / GIB
        if before - needs >= 0.05:
            found.append(Saving(override, costs, before - needs, needs))
    return found


class OutOfMemory(StageError):
    """The GPU's memory is full."""


def out_of_memory(config: Config, step: int, longest: int) -> OutOfMemory:
    """What to say when the GPU's memory is full."""
    cures = [str(saving) for saving in savings(config, longest)]
    if config.compute.environment_variables.get(ALLOCATOR) is None:
        cures.insert(0, f"compute.environment_variables.{ALLOCATOR}=expandable_segments:True (less fragmentation)")
    last = "a larger GPU: python -m ftkit --help compute" if not cures else ""
    return OutOfMemory(f"out of GPU memory at step {step}", cure=("\n" + " " * 9).join(cures) or last)


def _cheaper(config: Config, longest: int | None) -> Iterator[tuple[str, str, Config]]:
    sft, lora, model = config.sft, config.lora, config.model
    family = family_of(model.architecture.model_type)
    if model.attn_implementation == "eager" and (best := family.attention[0]) != "eager":
        yield f"model.attn_implementation={best}", "faster as well", _with(config, "model", attn_implementation=best)
    rows = sft.rows_at_a_time
    if rows > 1:
        accumulated = sft.gradient_accumulation_steps * rows
        changed = _with(config, "sft", per_device_train_batch_size=1)
        yield (
            f"sft.per_device_train_batch_size=1 sft.gradient_accumulation_steps={accumulated}",
            "the same steps, slower",
            changed,
        )
    if config.processes > 1 and not sft.fsdp:
        yield "sft.fsdp=true", "weights travel between the GPUs", _with(config, "sft", fsdp=True)
    if family.mxfp4 and model.experts_implementation == "ftkit_lora" and lora and not sft.fsdp:
        yield "model.weights=mxfp4", "about an eighth slower", _with(config, "model", weights="mxfp4")
    yield (
        "sft.gradient_checkpointing=true",
        "about a third slower",
        _with(config, "sft", gradient_checkpointing=True),
    )
    if sft.packing and longest and longest < sft.max_length:
        changed = _with(config, "sft", packing=False, max_length=longest)
        yield "sft.packing=false", f"slower; rows are {longest:,} tokens at most", changed
    halved = sft.max_length // 2
    yield f"sft.max_length={halved}", "leaves longer rows out, counted", _with(config, "sft", max_length=halved)
    if lora is None:
        return
    rank = max(1, lora.r // 2)
    yield f"lora.r={rank}", "learns less", _with(config, "lora", r=rank)
    yield "lora=attention", "trains no expert", _with(config, "lora", target_parameters=None)


def _with(config: Config, group: str, **changes: object) -> Config:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=changes)})
