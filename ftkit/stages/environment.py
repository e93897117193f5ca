"""stage=environment: check that what is pinned is installed, or on Azure ML make the images of jobs and endpoints.

python -m ftkit experiment=tiny stage=environment
python -m ftkit stage=environment environment.wait=true
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich.table import Table

from ftkit.config.places import place_of
from ftkit.config.sources import PACKAGE
from ftkit.console import console
from ftkit.errors import StageError
from ftkit.stages import Context, Made
from ftkit.versions import version_of

SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "hydra-core", "omegaconf")
EXTRAS = ("train", "serve")


def run(context: Context) -> Made:
    """See ``ftkit.platforms.azureml.environments`` for Azure ML; here see ``check_installed``."""
    if place_of("environment", context.config) == "azureml":
        from ftkit.platforms.azureml import AzureML

        return Made(AzureML(context.config, context.run_folder).build_images(context.say))
    return check_installed(context)


def check_installed(context: Context) -> Made:
    """Hold installed versions against ftkit's bounds and show the tested ones beside them.

    Raises:
        StageError: a package is missing or outside its bounds; names the command that mends it.
    """
    needed = {r.name.lower(): r for extra in ("", *EXTRAS) for r in _requirements(extra)}
    wrong = [f"{r} ({version_of(r.name) or 'not installed'})" for r in needed.values() if not _met(r)]
    tested = pinned_versions()
    table = Table(box=None, padding=(0, 3, 0, 13), pad_edge=True)
    for heading in ("package", "installed", "tested", "bounds"):
        table.add_column(heading, header_style="dim")
    for name in dict.fromkeys((*SHOWN, *needed)):
        bounds = str(needed[name].specifier) if name in needed else ""
        table.add_row(name, version_of(name) or "missing", tested.get(name, ""), bounds)
    console().print(table)
    if wrong:
        raise StageError(
            f"not as pinned: {', '.join(wrong)}",
            cure="pip install 'ftkit[train,serve]' -c environment/requirements.txt",
        )
    for line in _devices():
        context.say(line)
    return Made(f"{len(needed)} packages within their bounds, Python {platform.python_version()}")


def pinned_versions() -> dict[str, str]:
    """Versions that this release was tested with, from ``environment/requirements.txt``."""
    candidates = (PACKAGE / "environment", PACKAGE.parent / "environment")
    path = next((c / "requirements.txt" for c in candidates if (c / "requirements.txt").is_file()), None)
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.split(";")[0].strip() for name, _, version in pairs}


def _requirements(extra: str) -> list[Requirement]:
    """ftkit's own requirements: those of the base, or those that one extra adds."""
    found = [Requirement(line) for line in metadata.requires("ftkit") or ()]
    if not extra:
        return [r for r in found if r.marker is None]
    return [r for r in found if r.marker and r.marker.evaluate({"extra": extra}) and r.name != "ftkit"]


def _met(requirement: Requirement) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _devices() -> list[str]:
    import torch

    cores = torch.get_num_threads()
    lines = [f"CPU: {platform.machine()}, {cores} threads for torch {torch.__version__}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(
            f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )
    if not torch.cuda.is_available():
        lines.append("no CUDA GPU: training and serving take the plain CPU path")
    backends = [name for name in ("nccl", "gloo") if torch.distributed.is_backend_available(name)]
    lines.append(f"distributed back ends: {', '.join(backends) or 'none'}")
    return lines
