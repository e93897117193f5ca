"""What an image installs is what was tested: pins agree, lie within ftkit's bounds, and are complete."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from command import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGES = {"train": ("train", "job"), "serve": ("serve",)}
NOT_IN_JOBS = {"datasketch", "scipy", "tiktoken"}
"""Of the base install, what prepare alone needs, which runs before a job."""


def pins(path: Path) -> dict[str, str]:
    lines = (line.partition("==") for line in path.read_text().splitlines() if "==" in line)
    return {canonicalize_name(name): version for name, _, version in lines}


def needed_by(package: str, extra: str = "") -> list[Requirement]:
    found = [Requirement(line) for line in metadata.requires(package) or ()]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_the_tested_versions_and_all_that_they_need(image: str):
    tested = pins(REPOSITORY / "environment" / "requirements.txt")
    pinned = pins(REPOSITORY / "environment" / image / "requirements.txt")
    assert {name: version for name, version in pinned.items() if tested[name] != version} == {}
    missing = {r.name for name in pinned for r in needed_by(name) if canonicalize_name(r.name) not in pinned}
    assert missing == set()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_ftkits_extras_ask_for_within_their_bounds(image: str):
    pinned = pins(REPOSITORY / "environment" / image / "requirements.txt")
    asked = [r for extra in IMAGES[image] for r in needed_by("ftkit", extra) if r.name != "ftkit"]
    if image == "serve":  # score.py and its modules alone go there
        asked = [r for r in asked if r.marker is not None]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name not in NOT_IN_JOBS and name not in ("httpx",):
            assert requirement.specifier.contains(pinned[name]), requirement
