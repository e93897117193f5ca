"""What was trained as a folder: PEFT's files of the adapter or the whole model, the tokenizer, and their origin."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkit.config.schema import Config
from ftkit.errors import StageError

FILE = "ftkit_trained.json"
KINDS = ("adapter", "model")


def folder_name(config: Config) -> str:
    """Where ``train`` leaves what it trained."""
    return KINDS[0] if config.lora else KINDS[1]


@dataclass(frozen=True)
class Origin:
    """What an adapter or a model was trained from, and whether its training came to its end.

    Attributes:
        base: ``model.pretrained_model_name_or_path``.
        revision: ``model.revision``.
        architecture: ``model.architecture``.
        global_step: optimiser steps done.
        max_steps: optimiser steps asked for.
    """

    base: str
    revision: str | None
    architecture: dict[str, int]
    global_step: int
    max_steps: int

    @classmethod
    def of(cls, config: Config, *, global_step: int, max_steps: int) -> Origin:
        model = config.model
        return cls(
            model.pretrained_model_name_or_path, model.revision, model.architecture.model_dump(), global_step, max_steps
        )

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def check_trained(folder: Path, config: Config) -> Origin:
    """See that an adapter or a trained model is whole, finished, and made from the configured base model.

    Raises:
        StageError: it is not.
    """
    kind = folder_name(config)
    try:
        origin = Origin(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise StageError(f"there is no finished {kind}", where=str(folder), cure="stage=train") from error
    except (OSError, ValueError, TypeError) as error:
        raise StageError(
            f"the {kind} cannot be read: {error}", where=str(folder / FILE), cure="stage=train force=true"
        ) from error
    if origin.global_step < origin.max_steps:
        raise StageError(
            f"the {kind}'s training was interrupted at step {origin.global_step} of {origin.max_steps}",
            where=str(folder),
            cure="stage=train goes on from the last checkpoint",
        )
    wanted = Origin.of(config, global_step=origin.global_step, max_steps=origin.max_steps)
    for name in ("base", "revision", "architecture"):
        made, asked = getattr(origin, name), getattr(wanted, name)
        if made != asked:
            key = {"base": "model.pretrained_model_name_or_path", "revision": "model.revision"}.get(
                name, f"model.{name}"
            )
            raise StageError(
                f"the {kind} was made for {key}={made}, and now it is {asked}",
                where=str(folder),
                cure="stage=train,merge",
            )
    return origin
