"""Installed packages: their versions, which extra of ftkit brings them, what to say when one is missing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from ftkit import __version__
from ftkit.errors import StageError

FLASH_ATTENTION_4 = "flash-attn-4"
TRAINING = ("torch", "transformers", "trl", "peft", "accelerate")
RECORDED = (*TRAINING, "datasets", "tokenizers", "safetensors", "hydra-core", "omegaconf", FLASH_ATTENTION_4)
TRAIN_EXTRA = ("torch", "transformers", "accelerate", "peft", "trl", "tensorboard", "matplotlib")


def require(extra: str, modules: Sequence[str], what: str) -> None:
    """Check that modules can be imported, without importing them.

    Args:
        extra: of ftkit, that brings them.
        modules: by dotted name.
        what: needs them: ``training``.

    Raises:
        StageError: one is missing; names the command that installs it.
    """
    if missing := [name for name in modules if not _is_there(name)]:
        raise StageError(f"{what} needs {', '.join(missing)}, which is not installed", cure=install_command(extra))


def require_extra(extra: str, what: str) -> None:
    """Check that the packages of an extra are installed, whatever is in them.

    Raises:
        StageError: one is missing; names the command that installs it.
    """
    if missing := [r.name for r in requirements(extra) if version_of(r.name) is None]:
        raise StageError(f"{what} needs {', '.join(missing)}, which is not installed", cure=install_command(extra))


def install_command(*extras: str) -> str:
    """The command that installs extras of ftkit: from its checkout, or else what they consist of."""
    python = Path(sys.executable)
    shown = str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else str(python)
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        where = "." if checkout == Path.cwd().resolve() else str(checkout)
        return f"{shown} -m pip install -e '{where}[{','.join(extras)}]'"
    needed = dict.fromkeys(str(r).partition(";")[0].strip() for extra in extras for r in requirements(extra))
    return f"{shown} -m pip install {' '.join(repr(one) for one in needed)}"


def requirements(extra: str) -> list[Requirement]:
    """ftkit's own requirements: those of the base, or those that one extra adds."""
    try:
        found = [Requirement(line) for line in metadata.requires("ftkit") or ()]
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return []
    if not extra:
        return [r for r in found if r.marker is None]
    return [r for r in found if r.marker and r.marker.evaluate({"extra": extra}) and r.name != "ftkit"]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def require_train_extra() -> None:
    """Raises StageError: a package of the extra ``train`` is missing."""
    require("train", TRAIN_EXTRA, "training")


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
