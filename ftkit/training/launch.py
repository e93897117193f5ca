"""Several training processes on this machine, started by torchrun; each reads the frozen configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.errors import FtkitError, Interrupted, StageError
from ftkit.files import written_aside
from ftkit.locks import descriptors
from ftkit.processes import passing_on_sigterm, threads_each

RESULT = "workers.json"
LOG = "workers.log"
SAVING_S = 600
"""Seconds that workers may take to save once they have been asked to end; then torchrun kills them."""


def train(
    config: Config, *, tokens: Path, out: Path, checkpoints: Path, frozen: Path, label: str = ""
) -> dict[str, Any]:
    """Run ``ftkit.training.worker`` in ``config.compute.gpus_per_node`` processes and return what rank 0 reports.

    ``label`` begins every line that it prints.

    Raises:
        StageError: the error of the worker that failed first, or the end of the workers' log when it left none.
        Interrupted: Ctrl-C or SIGTERM, to this process or to a worker; the workers have ended by then.
    """
    result, log = out / RESULT, out / LOG
    result.unlink(missing_ok=True)
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(config.compute.gpus_per_node),
            "--shutdown-timeout",
            str(SAVING_S),
        ),
        *("-m", "ftkit.training.worker", str(frozen), str(tokens), str(out), str(checkpoints), str(result)),
        *([label] if label else []),
    ]
    with log.open("w", encoding="utf-8") as errors:
        environment = os.environ | threads_each(config.compute.gpus_per_node) | config.compute.environment_variables
        process = subprocess.Popen(command, stderr=errors, env=environment, pass_fds=descriptors())
        with passing_on_sigterm(process):
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                process.wait()
                raise
    return _read(result, log, status)


def report(result: Path, outcome: dict[str, Any] | FtkitError) -> None:
    """Called by a worker: leave its outcome for the parent; the first error stays."""
    if isinstance(outcome, FtkitError):
        if result.exists():
            return
        if isinstance(outcome, Interrupted):
            outcome = {"interrupted": str(outcome), "status": outcome.exit_status}
        else:
            what, where, cure = (getattr(outcome, name, "") for name in ("what", "where", "cure"))
            outcome = {"error": {"what": what or str(outcome), "where": where, "cure": cure}}
    with written_aside(result) as aside:
        aside.write_text(json.dumps(outcome), encoding="utf-8")


def _read(result: Path, log: Path, status: int) -> dict[str, Any]:
    outcome = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    if outcome and "error" in outcome:
        raise StageError(outcome["error"]["what"], where=outcome["error"]["where"], cure=outcome["error"]["cure"])
    if outcome and "interrupted" in outcome:
        interrupted = Interrupted(outcome["interrupted"])
        interrupted.exit_status = outcome["status"]
        raise interrupted
    if status in (130, -signal.SIGINT):
        raise Interrupted("interrupted in train; the same command takes it up again")
    if status != 0 or outcome is None:
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-5:]
        raise StageError(f"the training processes ended with status {status}: " + " / ".join(last), where=str(log))
    return outcome
