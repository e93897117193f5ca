"""Which versions are installed, for records and for the environment stage; imports none of the packages."""

from __future__ import annotations

import platform
from importlib import metadata

from ftkit import __version__

TRAINING = ("torch", "transformers", "trl", "peft", "accelerate")
RECORDED = (*TRAINING, "datasets", "tokenizers", "safetensors", "hydra-core", "omegaconf")


def version_of(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """Versions that a result may depend on: Python, ftkit and the libraries that are installed."""
    found = {name: version_of(name) for name in RECORDED}
    return {"python": platform.python_version(), "ftkit": __version__} | {k: v for k, v in found.items() if v}
