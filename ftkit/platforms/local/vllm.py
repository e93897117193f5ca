"""vLLM on this machine: the command that serves a model, and what its log says when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftkit.errors import StageError
from ftkit.serving.endpoint.vllm_server import find_vllm, reason_in


def executable() -> str:
    """The path of ``vllm``, beside this Python or else on the PATH.

    Raises:
        StageError: it is not installed.
    """
    if found := find_vllm():
        return found
    raise StageError(
        "deployment.server=vllm needs vllm, which is not installed",
        where="beside this Python, and on the PATH",
        cure="pip install vllm, on a machine with a GPU that it supports; or deployment.server=score",
    )


def command(model: Path, names: Sequence[str], host: str, port: int, at_a_time: int) -> list[str]:
    """What serves a model.

    Args:
        model: its folder.
        names: that requests may give it.
        at_a_time: requests in one batch.
    """
    return [
        *(executable(), "serve", str(model), "--host", host, "--port", str(port)),
        *("--served-model-name", *names, "--max-num-seqs", str(at_a_time)),
    ]


def reason(log: str) -> str:
    """The last line of the log that tells of an error, or else its last line."""
    return reason_in(log.splitlines())
