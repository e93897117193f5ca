"""Clients that users have, each asking the served tiny model: it creates, streams and continues a chat, with tools.

They are installed into an environment of their own, once: below pytest's cache, or in $FTKIT_CLIENTS_ENVIRONMENT.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import REPOSITORY
from helpers.needs import not_installed

from ftkit.locks import locked
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving import client

HERE = REPOSITORY / "tests" / "serving"
REQUIREMENTS = HERE / "clients-requirements.txt"
CLIENTS = sorted(path.stem.removesuffix("_client") for path in (HERE / "clients").glob("*_client.py"))
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": "",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    """Of the environment that has the clients."""
    given = os.environ.get("FTKIT_CLIENTS_ENVIRONMENT")
    home = Path(given) if given else Path(request.config.cache.mkdir("clients"))
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    environment, done = home / wanted[:16], home / wanted[:16] / "done"
    with locked(home, "installing clients", wait=print):
        if not done.exists():
            if failed := install(environment):
                not_installed("the clients cannot be installed here", failed)
            done.touch()
    return environment / "bin" / "python"


def install(environment: Path) -> str:
    """Install what is pinned, by uv where it is installed; returns the last of what went wrong."""
    shutil.rmtree(environment, ignore_errors=True)
    python = str(environment / "bin" / "python")
    pinned = ["install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
    if uv := shutil.which("uv"):
        commands = [[uv, "venv", "--quiet", "--python", sys.executable, str(environment)]]
        commands += [[uv, "pip", *pinned, "--python", python]]
    else:
        commands = [[sys.executable, "-m", "venv", str(environment)], [python, "-m", "pip", *pinned]]
    for command in commands:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            return finished.stderr[-500:] or f"{command[0]} failed"
    return ""


@pytest.fixture(scope="module")
def expected(endpoint: Endpoint) -> str:
    """The answer to the clients' question."""
    messages = [
        {"role": "system", "content": "reasoning language: Japanese"},
        {"role": "user", "content": "12メートルは何センチメートルですか？"},
    ]
    return client.score(endpoint.scoring_uri, {"messages": messages}, timeout_s=60)["output"]


@pytest.mark.parametrize("name", CLIENTS)
def test_it_creates_streams_and_continues(python: Path, endpoint: Endpoint, expected: str, name: str, tmp_path: Path):
    uri = endpoint.scoring_uri.replace("/score", "/v1")
    command = [str(python), str(HERE / "clients" / f"{name}_client.py"), uri, expected]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | QUIET, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
