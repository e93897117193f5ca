"""The process of vLLM, by a stand-in that loads nothing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psutil
import pytest
from helpers.command import REPOSITORY

from ftkit.serving.endpoint.vllm_server import STARTS_SOONER, VllmServer

pytestmark = pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started")


@pytest.mark.parametrize("own", [{}, {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}])
def test_it_is_told_how_to_start_sooner_unless_the_endpoint_says_otherwise(
    own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script, stand_in = tmp_path / "vllm", REPOSITORY / "tests" / "helpers" / "vllm_light.py"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in STARTS_SOONER:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    server = VllmServer(["model", "--served-model-name", "tiny"])
    (process,) = (one for one in psutil.Process().children() if str(stand_in) in one.cmdline())
    told = {name: value for name, value in process.environ().items() if name in STARTS_SOONER}
    server.stop()
    assert told == {"VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_ENABLE_STARTUP_PLAN": "1"} | own
