"""stage=environment: check that what is pinned is installed, or on Azure ML make the images of jobs and endpoints.

python -m ftkit experiment=tiny stage=environment
python -m ftkit stage=environment environment.wait=true
"""

from __future__ import annotations

import platform

from packaging.requirements import Requirement

from ftkit.config.option_files import shipped_environment
from ftkit.console import listing, print_listing
from ftkit.errors import StageError
from ftkit.packages import install_command, requirements, version_of
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.base import remote_platform_of
from ftkit.translation import said

SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "hydra-core", "omegaconf")
EXTRAS = ("train", "serve")


def run(context: Context) -> Made:
    """Have a platform with jobs make its images; here see ``check_installed``."""
    if context.config.compute.elsewhere:
        return Made(remote_platform_of(context.config, context.run_folder).build_images(context.say))
    return check_installed(context)


def check_installed(context: Context) -> Made:
    """Hold installed versions against ftkit's bounds and show the tested ones beside them.

    Raises:
        StageError: a package is missing or outside its bounds; names the command that mends it.
    """
    needed = {r.name.lower(): r for extra in ("", *EXTRAS) for r in requirements(extra)}
    wrong = [f"{r} ({version_of(r.name) or 'not installed'})" for r in needed.values() if not _met(r)]
    tested = pinned_versions()
    table = listing(*map(said, ("package", "installed", "tested", "bounds")))
    for name in dict.fromkeys((*SHOWN, *needed)):
        bounds = str(needed[name].specifier) if name in needed else ""
        table.add_row(name, version_of(name) or said("missing"), tested.get(name, ""), bounds)
    print_listing(table)
    if wrong:
        raise StageError(
            f"not as pinned: {', '.join(wrong)}",
            cure=install_command(*EXTRAS),
        )
    for line in _devices():
        context.say(line)
    return Made(f"{len(needed)} packages within their bounds, Python {platform.python_version()}")


def pinned_versions() -> dict[str, str]:
    """Versions that this release was tested with, from ``environment/requirements.txt``."""
    path = shipped_environment() / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.split(";")[0].strip() for name, _, version in pairs}


def _met(requirement: Requirement) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _devices() -> list[str]:
    import torch

    machine, threads, version = platform.machine(), torch.get_num_threads(), torch.__version__
    several = f"CPU: {machine}, {threads} threads for torch {version}"
    lines = [several if threads > 1 else f"CPU: {machine}, 1 thread for torch {version}"]
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
