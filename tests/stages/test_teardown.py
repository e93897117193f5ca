"""stage=teardown, where a platform that the run may use cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.command import run_ftkit

from ftkit.config.resolve import resolve
from ftkit.pipeline.lineage import folder_of
from ftkit.platforms.local.endpoint import SERVING, Endpoint
from ftkit.platforms.local.platform import Local


@pytest.fixture
def serving(in_empty_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is known as the server of ``experiment=tiny``, and does nothing."""
    config = resolve(["experiment=tiny", "compute=slurm"])
    name = str(config.deployment.endpoint_name)
    folder = in_empty_folder / "outputs" / "_workspace" / "endpoints" / name
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", "input()", "ftkit-0123"]
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process,
    ):
        pool.submit(process.wait)  # else it would stay as a zombie, which teardown takes for alive
        endpoint = Endpoint(
            **{"endpoint_name": name, "deployment_name": "blue", "model": "tiny:1", "model_dir": "", "port": 1},
            **{"folder": str(folder), "pid": process.pid, "token": "ftkit-0123", "startup_timeout_s": 1},
            **{"request_timeout_ms": 1, "max_concurrent_requests": 1},
        )
        (folder / SERVING).write_text(json.dumps(asdict(endpoint)))
        assert len(Local(config, folder_of(config)).running()) == 1
        yield process
        process.kill()


def test_where_there_is_no_slurm_the_endpoint_is_stopped_all_the_same_and_slurm_told(
    serving: subprocess.Popen[bytes], in_empty_folder: Path
) -> None:
    def teardown(*more: str):
        slurm = ("experiment=tiny", "compute=slurm", "stage=teardown")
        return run_ftkit(*slurm, *more, cwd=in_empty_folder, PATH=str(in_empty_folder))

    unasked = teardown()
    assert unasked.status == 1 and "cure   yes=true" in unasked.err and "Slurm is not known" in unasked.out, unasked
    assert serving.poll() is None

    stopped = teardown("yes=true")
    assert serving.wait(timeout=60)
    assert stopped.status == 1 and "what runs on Slurm is not known: compute=slurm, and there is no" in stopped.err
    assert "cure   run ftkit on a machine of the cluster" in stopped.err and "stopping endpoint" in stopped.out
