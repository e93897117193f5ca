"""One real server for all tests of serving: the tiny model that ships with the package, behind Azure ML's server."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command import REPOSITORY

from ftkit.assets import asset_path
from ftkit.platforms.local import endpoint as local_endpoint

SYSTEM = "reasoning language: Japanese"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the tiny model, MXFP4 as it ships."""
    return Path(asset_path("package:tiny-gpt-oss"))


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="session")
def model_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AZUREML_MODEL_DIR is at an endpoint: the parent of the model's folder; ``ftkit.json`` lies in that."""
    parent = tmp_path_factory.mktemp("registered")
    shutil.copytree(tiny, parent / "merged")
    around = {"name": "tiny", "system": SYSTEM, "reasoning_effort": "medium"}
    (parent / "merged" / "ftkit.json").write_text(json.dumps(around), encoding="utf-8")
    return parent


@pytest.fixture(scope="session")
def endpoint(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_endpoint.Endpoint]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTKIT_MAX_NEW_TOKENS", "1000")
        patch.setenv("FTKIT_MAX_INPUT_TOKENS", "600")
        patch.setenv("FTKIT_BODY_TIMEOUT_MS", "4000")
        patch.setenv("FTKIT_HEADER_TIMEOUT_MS", "4000")
        patch.setenv("FTKIT_SEND_TIMEOUT_MS", "1000")
        served = local_endpoint.start(
            endpoint_name="tests",
            deployment_name="blue",
            model_dir=model_dir,
            state_dir=tmp_path_factory.mktemp("endpoints"),
            port=0,
            startup_timeout_s=120,
            request_timeout_ms=60_000,
            max_concurrent_requests=64,
            model="tiny:1",
            progress=lambda _line: None,
        )
    yield served
    local_endpoint.stop(served)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the PATH with the double as ``vllm``."""
    folder = tmp_path_factory.mktemp("bin")
    double = REPOSITORY / "tests" / "helpers" / "vllm_double.py"
    (folder / "vllm").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{double}" "$@"\n')
    (folder / "vllm").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("VLLM_DOUBLE_DIES", str(folder / "dies"))
        yield folder
