"""Processes of ``interpreted.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.command import REPOSITORY

TRITON = "triton==3.7.1"
Interpreted = Callable[..., subprocess.CompletedProcess[str]]


def interpreter_in(folder: Path) -> Interpreted:
    """Runs ``interpreted.py`` with a Triton of its own, which torch for CPUs has not and other tests must not see."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", folder, TRITON], check=True)
    path = [str(REPOSITORY), str(REPOSITORY / "tests"), str(folder), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, REPOSITORY / "tests" / "helpers" / "interpreted.py"]
        return subprocess.run(
            [*script, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    return run
