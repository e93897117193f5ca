"""The processes of a local endpoint: how they are started, with what environment, and seen to be healthy.

The application of Azure ML's inference server runs under gunicorn, as its own launcher would do it if that did not
always bind 0.0.0.0, and takes OpenAI's path as well. It supports Python up to 3.12; on a newer one gunicorn serves
``score.py`` by itself.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ftkit.errors import StageError
from ftkit.platforms.local import vllm as local_vllm
from ftkit.processes import usable_cores
from ftkit.serving import log_files
from ftkit.serving.endpoint.board import FOLDERS, began
from ftkit.serving.endpoint.limits import SPARE_THREADS
from ftkit.serving.endpoint.loading import find_model
from ftkit.serving.server_log import compared, reason
from ftkit.serving.settings import front_processes

if TYPE_CHECKING:
    import psutil

    from ftkit.platforms.local.endpoint import Endpoint

HOST = "127.0.0.1"
AZURES_SERVER = ("azureml_inference_server_http",) if sys.version_info < (3, 13) else ()
APPLICATION = "ftkit.serving.local_app:app" if AZURES_SERVER else "ftkit.serving.plain_app:app"
WORKER = "ftkit.serving.local_worker.PromptWorker"
PACKAGE = Path(__file__).parents[2]
NEEDED = (*AZURES_SERVER, "flask", "flask_cors", "gunicorn", "httpx", "psutil", "torch", "transformers")

_NEEDED_VARIABLES = re.compile(
    r"(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|DYLD_\w+|VIRTUAL_ENV|CONDA_PREFIX"
    r"|PYTHON(PATH|HASHSEED|UTF8|IOENCODING|MALLOC|FAULTHANDLER)|SSL_CERT_(FILE|DIR)|XDG_CACHE_HOME|HF_(HOME|HUB_CACHE)"
    r"|(OMP|MKL|OPENBLAS|KMP|GOMP|NUMEXPR|MALLOC|CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|GLOO|HIP|ROCR|HSA|TORCH|PYTORCH|TORCHINDUCTOR"
    r"|TRITON|TOKENIZERS|TIKTOKEN|VLLM|FTKIT)_\w+)"
)
"""Environment variables that an endpoint inherits: what finds programs, libraries, caches and devices, and our own."""
_SECRET = re.compile(r"TOKEN$|SECRET|PASS|KEY|CREDENTIAL", re.I)
"""In the name of one of those all the same."""

_LOADED = re.compile(r"serving \S.* loaded in ")
"""What score.py says in the log of each process when it is ready."""


def spawn(endpoint: Endpoint, listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the server of an endpoint, on a socket that holds its port."""
    return _spawn_score(endpoint, listener) if endpoint.server == "score" else _spawn_vllm(endpoint, listener)


def _spawn_score(endpoint: Endpoint, listener: socket.socket) -> subprocess.Popen[bytes]:
    options = {
        "name": endpoint.token,
        "bind": f"fd://{listener.fileno()}",
        "pythonpath": str(PACKAGE.parent),
        "workers": endpoint.workers,
        "worker-class": WORKER,
        "threads": endpoint.max_concurrent_requests + SPARE_THREADS,
        "timeout": endpoint.startup_timeout_s + 60,  # a loading worker gives no sign of life
        "graceful-timeout": math.ceil(endpoint.request_timeout_ms / 1000),
        "forwarder-headers": "",  # nobody forwards to it: SCRIPT_NAME would be taken from any client
        "error-logfile": "-",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "gunicorn", *arguments, "--no-control-socket", APPLICATION]
    return _detached(command, endpoint, (listener.fileno(),))


def _spawn_vllm(endpoint: Endpoint, listener: socket.socket) -> subprocess.Popen[bytes]:
    name, model = endpoint.model.partition(":")[0], find_model(Path(endpoint.model_dir))
    command = local_vllm.command(model, (name, endpoint.token), HOST, endpoint.port, endpoint.max_concurrent_requests)
    command += endpoint.engine_args
    listener.close()  # vLLM binds the port itself
    return _detached(command, endpoint)


def _detached(command: list[str], endpoint: Endpoint, files: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """Start a server that goes on when this command ends; ``files`` are descriptors that it inherits."""
    with Path(endpoint.log).open("ab") as log:  # so that it can be cut while they write
        return subprocess.Popen(
            command,
            cwd=endpoint.folder,
            env=_environment(endpoint),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=files,
        )


def _environment(endpoint: Endpoint) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if _NEEDED_VARIABLES.fullmatch(name) and not _SECRET.search(name)
    }
    return inherited | {
        "FTKIT_MAX_CONCURRENT_REQUESTS": str(endpoint.max_concurrent_requests),
        **endpoint.variables,
        "FTKIT_FRONT_PROCESSES": str(endpoint.front_processes),
        log_files.VARIABLE: endpoint.log,
        "AML_APP_ROOT": endpoint.folder,  # the server would take a config.json there for its own settings
        "AZUREML_ENTRY_SCRIPT": str(PACKAGE / "serving" / "score.py"),
        "AZUREML_MODEL_DIR": endpoint.model_dir,
        "SCORING_TIMEOUT_MS": str(endpoint.request_timeout_ms),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def wait_until_healthy(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> None:
    """Wait until all workers of a server that was started have loaded the model.

    Raises:
        StageError: it ended, in its log's words, or took longer than it may.
    """
    import httpx
    import psutil

    deadline = time.monotonic() + endpoint.startup_timeout_s
    workers: set[int] = set()
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            if endpoint.server == "score":
                workers |= {child.pid for child in psutil.Process(process.pid).children()}
        if (
            process.poll() is not None or len(workers) > endpoint.workers
        ):  # gunicorn ends when init fails, replaces a killed worker
            why = (
                reason(_said(endpoint)) if endpoint.server == "score" else local_vllm.reason(_said(endpoint))
            ) or "its worker was killed, for want of memory perhaps"
            raise StageError(f"the server did not start: {why}", where=endpoint.log)
        with suppress(httpx.HTTPError):
            loaded = len(_LOADED.findall(_said(endpoint)))
            if (endpoint.server == "vllm" or loaded >= endpoint.workers) and httpx.get(
                endpoint.health_uri, timeout=1, trust_env=False
            ).status_code == 200:
                return
        time.sleep(0.1)
    cure = f"deployment.startup_timeout_s={endpoint.startup_timeout_s * 2}, if the log shows that it was still loading"
    raise StageError(f"not healthy after {endpoint.startup_timeout_s} s", where=endpoint.log, cure=cure)


def fronts_of(server: str, variables: Mapping[str, str], instance_count: int, wanted: int | Literal["auto"]) -> int:
    """How many processes of score.py stand before one vLLM here; one with another engine, and where there is no /proc.

    Args:
        variables: environment variables of the endpoint, which name its engine.
        wanted: ``deployment.front_processes``.
    """
    from ftkit.serving.endpoint.vllm_engine import VllmEngine

    engine = variables.get("FTKIT_ENGINE", "auto")
    with_vllm = server == "score" and (engine == "vllm" or (engine == "auto" and VllmEngine.suits()))
    can_share = with_vllm and instance_count == 1 and Path("/proc/self/stat").exists()
    return front_processes(wanted, usable_cores()) if can_share else 1


def compared_adapters(endpoint: Endpoint) -> list[str]:
    """What its log says of each adapter that vLLM applies."""
    return compared(_said(endpoint))


def _said(endpoint: Endpoint) -> str:
    """Its log."""
    return Path(endpoint.log).read_text(encoding="utf-8", errors="replace")


def process_of(endpoint: Endpoint) -> psutil.Process | None:
    """Its running process; None if that is gone or its number belongs to another process now."""
    import psutil

    pids = [endpoint.pid] if endpoint.pid else psutil.pids()
    for pid in pids if endpoint.token else ():
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if endpoint.token in process.cmdline() and os.getsid(pid) == pid:  # the master, not a worker
                return process
    return None


def end(endpoint: Endpoint, grace_s: float) -> bool:
    """Ask its processes to end, and kill those that are left after so many seconds; whether it was running."""
    import psutil

    process = process_of(endpoint)
    pid = process.pid if process else endpoint.pid
    shared = "" if endpoint.front_processes == 1 or (began(pid) and not process) else f"{FOLDERS}{pid}-"
    family = _family_of(process, shared)
    if process:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    later = [each for each in _family_of(process, shared) if each not in family]  # in the place of one that was killed
    alive += [each for each in later if each.is_running()]
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=10)
    for folder in Path(tempfile.gettempdir()).glob(f"{shared}*") if shared else ():
        shutil.rmtree(folder, ignore_errors=True)
    return process is not None


def _family_of(process: psutil.Process | None, shared: str) -> list[psutil.Process]:
    """A process, what it has started, and what watches a vLLM of several front processes.

    The last has no parent among them any more if the one that started it was replaced.

    Args:
        shared: how the name of the folder begins that they share; empty if there is none.
    """
    import psutil

    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)] if process else []
    for other in psutil.process_iter(["cmdline"]) if shared else ():
        if any(shared in word for word in other.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                family += [each for each in (other, *other.children(recursive=True)) if each not in family]
    return family
