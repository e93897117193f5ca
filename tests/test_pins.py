"""What an image installs is what was tested: pins agree, lie within ftkit's bounds, and are complete."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, run_ftkit
from helpers.marks import needs_azures_server
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ftkit.config.resolve import resolve
from ftkit.platforms.azureml import deployment_spec, environments

IMAGES = {"train": ("train", "hopper", "job"), "serve": ("serve",), "own": ("train", "hopper", "serve")}
NOT_IN_JOBS = {"scipy", "tiktoken"}
"""Of the base install, what prepare alone needs, which runs before a job."""


CUDA = ("nvidia-", "cuda-", "triton", "flash-attn-4", "quack-kernels", "apache-tvm-ffi", "torch-c-dlpack-ext", "einops")
"""Begin the names of what torch and FlashAttention 4 need beside a GPU, and do not where the tests run."""


def pins(path: Path) -> dict[str, str]:
    lines = (line.removesuffix("\\").partition("==") for line in path.read_text().splitlines() if "==" in line)
    return {canonicalize_name(name): version.strip() for name, _, version in lines}


def needed_by(package: str, extra: str = "") -> list[Requirement]:
    found = [Requirement(line) for line in metadata.requires(package) or ()]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


@needs_azures_server
@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_the_tested_versions_and_all_that_they_need(image: str):
    tested = pins(REPOSITORY / "environment" / "requirements.txt")
    pinned = pins(REPOSITORY / "environment" / image / "requirements.txt")
    for_cuda = {name for name in pinned if name.startswith(CUDA)}
    assert {name: v for name, v in pinned.items() if name not in for_cuda and tested[name] != v} == {}
    missing = {
        r.name for name in pinned.keys() - for_cuda for r in needed_by(name) if canonicalize_name(r.name) not in pinned
    }
    assert missing == set()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_ftkits_extras_ask_for_within_their_bounds(image: str):
    pinned = pins(REPOSITORY / "environment" / image / "requirements.txt")
    asked = [r for extra in IMAGES[image] for r in needed_by("ftkit", extra) if r.name != "ftkit"]
    if image == "serve":  # score.py and its modules alone go there
        asked = [r for r in asked if r.marker is not None]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if (image == "own" or name not in NOT_IN_JOBS) and name not in ("httpx",):
            assert requirement.specifier.contains(pinned[name]), requirement


@pytest.mark.parametrize(
    "file", ["train/requirements.txt", "serve/requirements.txt", "serve/vllm.txt", "own/requirements.txt"]
)
def test_an_image_installs_nothing_whose_hash_is_not_known(file: str):
    path = REPOSITORY / "environment" / file
    asked = f"pip install --no-cache-dir --require-hashes --requirement /tmp/{path.name}"
    assert asked in (path.parent / "Dockerfile").read_text()
    packages = path.read_text().replace("\\\n", " ").splitlines()[1:]
    without = [line for line in packages if not re.fullmatch(r"[\w.-]+==\S+ +(--hash=sha256:[0-9a-f]{64} *)+", line)]
    assert packages and without == []


def test_the_image_for_ones_own_gpus_gets_what_ftkit_runs_from(tmp_path: Path):
    """What the Dockerfile copies, as its .dockerignore lets it, is all that the commands need."""
    folder = REPOSITORY / "environment" / "own"
    lines = (folder / "Dockerfile").read_text().splitlines()
    sent = {line[1:] for line in (folder / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = dict(line.split()[1:] for line in lines if line.startswith("COPY "))
    assert copied.keys() == sent
    for source, target in copied.items():
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(REPOSITORY / source, place) if (REPOSITORY / source).is_dir() else place.touch()
    (tmp_path / "work").mkdir()
    there = {"cwd": tmp_path / "work", "PYTHONPATH": str(tmp_path / "opt" / "ftkit")}
    done = run_ftkit("experiment=tiny", "stage=plan", "deployment.port=0", **there)
    assert done.status == 0, done


@pytest.mark.parametrize("image", ["own", "vllm"])
def test_an_image_that_needs_no_rights_of_root_has_none(image: str):
    """Azure ML's own servers and jobs, of the other images, begin as root."""
    lines = (REPOSITORY / "environment" / image / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")


@pytest.mark.usefixtures("workspace_named")
def test_a_managed_endpoints_image_holds_vllm_where_the_engine_is_vllm():
    def environment(engine: str) -> str:
        config = resolve(["stage=deploy", f"deployment.engine={engine}"])
        return deployment_spec.of(config, {"name": "m", "version": "1"}).environment

    assert environment("vllm") != environment("auto") == environment("transformers")
    with environments.build_context("serve") as plain, environments.build_context("serve", with_vllm=True) as whole:
        assert (plain / "vllm.txt").read_text() == "" and "\nvllm==" in (whole / "vllm.txt").read_text()
