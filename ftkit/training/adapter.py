"""The trained adapter as a folder: PEFT's own files, the tokenizer, and what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkit.config.schema import Config
from ftkit.errors import StageError

FILE = "ftkit_adapter.json"


@dataclass(frozen=True)
class Origin:
    """What an adapter was made from, and whether its training came to its end.

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

    def write(self, adapter: Path) -> None:
        (adapter / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def check_adapter(adapter: Path, config: Config) -> Origin:
    """See that an adapter is whole, finished, and made for the configured base model.

    Raises:
        StageError: it is not.
    """
    try:
        origin = Origin(**json.loads((adapter / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise StageError("there is no finished adapter", where=str(adapter), cure="stage=train") from error
    except (OSError, ValueError, TypeError) as error:
        raise StageError(
            f"the adapter cannot be read: {error}", where=str(adapter / FILE), cure="stage=train force=true"
        ) from error
    if origin.global_step < origin.max_steps:
        raise StageError(
            f"the adapter's training was interrupted at step {origin.global_step} of {origin.max_steps}",
            where=str(adapter),
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
                f"the adapter was made for {key}={made}, and now it is {asked}",
                where=str(adapter),
                cure="stage=train,merge",
            )
    return origin
