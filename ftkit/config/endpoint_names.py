"""The endpoint's name where none is typed: by the model, so that the versions of a model take each other's place."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

LONGEST = 32
"""Characters that Azure ML takes of an endpoint's name."""
ENDING = "jp-reasoner"
SIZE = r"(-a?\d+(\.\d+)?[bm])+$"


def endpoint_of(model: str) -> str:
    """Letters, digits and hyphens, a letter first: ``a-model-20b`` makes ``a-model-jp-reasoner``."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(SIZE, "", model, flags=re.IGNORECASE))
    stem = re.sub(r"^[^A-Za-z]+", "", words)[: LONGEST - len(ENDING) - 1].strip("-")
    return f"{stem}-{ENDING}" if stem else ENDING


def register() -> None:
    """As ``${ftkit.endpoint_of:…}`` in configuration files."""
    OmegaConf.register_new_resolver("ftkit.endpoint_of", endpoint_of, replace=True)
