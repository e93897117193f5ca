"""What a job of any platform starts from: its name, the frozen configuration, the records of the stages before it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.platforms.base import JobRequest
from ftkit.records import path_of

LARGEST_BYTES = 16 << 20
"""Of a file that comes from where a job has written it into the run's folder; larger ones stay there."""


def job_name(run: str, fingerprint: str, attempt: int) -> str:
    """The name of the job that does some work of a run, for the first time or once more.

    The same work has the same name: asked for twice, it is one job.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", run)
    return f"{readable[:60]}-{digest(run, fingerprint, str(attempt))}"


def digest(*texts: str) -> str:
    """Ten hexadecimal digits that tell texts apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def write_given(config: Config, request: JobRequest, folder: Path) -> None:
    """Write the resolved configuration and the records of the stages before the job, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    freeze(config.model_copy(update={"attach": None, "check": False, "stage": None}), folder / "config.yaml")
    for stage, record in request.records.items():
        path = path_of(folder, stage)
        path.parent.mkdir()
        path.write_text(json.dumps(asdict(record), ensure_ascii=False), encoding="utf-8")


def comes_here(parts: Sequence[str], size: int) -> bool:
    """Whether a file that a job has written comes into the run's folder: it is small, and none of trained weights.

    Args:
        parts: of its path below the run.
        size: in bytes.
    """
    return size <= LARGEST_BYTES and not {"adapter", "model"}.intersection(parts)
