"""The local platform's endpoints: Azure ML's own inference server with ``score.py``, on 127.0.0.1 alone.

The server outlives the command. State lies in ``<state_dir>/<endpoint>/``: ``endpoint.json`` describes the one that
serves, ``starting.json`` one that is not healthy yet.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ftkit.chat.messages import ModelError
from ftkit.errors import StageError
from ftkit.file_locks import take
from ftkit.files import explained, written_aside
from ftkit.packages import require
from ftkit.platforms.local import vllm as local_vllm
from ftkit.platforms.local.server_processes import (
    HOST,
    NEEDED,
    compared_adapters,
    end,
    fronts_of,
    process_of,
    spawn,
    wait_until_healthy,
)
from ftkit.processes import sigterm_as_ctrl_c
from ftkit.serving.endpoint.loading import check_weights, find_model
from ftkit.serving.servers import SERVERS

SERVING, STARTING = "endpoint.json", "starting.json"


@dataclass(frozen=True)
class Endpoint:
    """An online endpoint on this machine, with its one deployment.

    Attributes:
        endpoint_name: name of the endpoint.
        deployment_name: name of its deployment.
        model: registered model that it serves, ``name:version``.
        model_dir: what ``AZUREML_MODEL_DIR`` is: the folder that holds the model's folder.
        folder: where its state and log lie.
        port: on 127.0.0.1.
        startup_timeout_s: seconds that loading may take.
        request_timeout_ms: milliseconds that a request may take.
        max_concurrent_requests: requests that an instance takes at a time; a further one gets a 429.
        instance_count: processes that serve, each with the whole model.
        front_processes: of each instance, before one vLLM.
        server: ``score`` or ``vllm``.
        variables: environment variables of its processes.
        engine_args: further arguments of vllm serve.
        pid: process id of gunicorn's master, which leads a session of its own.
        token: a word in that process's command line by which it is known again.
        log: path of the server's log.
        traffic: percentage for each deployment.
        started: when, ISO 8601 in UTC.
    """

    endpoint_name: str
    deployment_name: str
    model: str
    model_dir: str
    folder: str
    port: int
    startup_timeout_s: int
    request_timeout_ms: int
    max_concurrent_requests: int
    instance_count: int = 1
    front_processes: int = 1
    server: str = "score"
    variables: Mapping[str, str] = field(default_factory=dict)
    engine_args: Sequence[str] = ()
    pid: int = 0
    token: str = ""
    log: str = ""
    traffic: Mapping[str, int] = field(default_factory=dict)
    started: str = ""

    @property
    def workers(self) -> int:
        """gunicorn's."""
        return self.instance_count * self.front_processes

    @property
    def scoring_uri(self) -> str:
        return f"http://{HOST}:{self.port}{SERVERS[self.server].route}"

    @property
    def page_uri(self) -> str:
        """Address of the page to talk with it; empty with a server that has none."""
        page = SERVERS[self.server].page
        return f"http://{HOST}:{self.port}{page}" if page else ""

    @property
    def health_uri(self) -> str:
        return f"http://{HOST}:{self.port}{SERVERS[self.server].health}"


def start(
    *,
    endpoint_name: str,
    deployment_name: str,
    model_dir: Path,
    state_dir: Path,
    port: int,
    startup_timeout_s: int,
    request_timeout_ms: int,
    max_concurrent_requests: int,
    model: str,
    instance_count: int = 1,
    front_processes: int | Literal["auto"] = "auto",
    server: str = "score",
    variables: Mapping[str, str] | None = None,
    engine_args: Sequence[str] = (),
    progress: Callable[[str], None],
) -> Endpoint:
    """Start an endpoint and wait until it is healthy; replace the one of this name, if it is running.

    On a port of its own the new one starts beside the old one, which then finishes its requests and stops. On the old
    one's port the old one stops first, and is started again if the new one fails. Whatever ends the wait, Ctrl-C and
    SIGTERM included, ends what was started.

    Args:
        model_dir: folder that holds the model's folder (or the model's folder itself).
        state_dir: folder for the state of all endpoints.
        port: on 127.0.0.1; 0 takes a free one.
        model: ``name:version``, for the record.
        instance_count: processes behind the port.
        front_processes: of score.py before its vLLM; auto: by the cores here, and one with another engine.
        server: ``score``, or ``vllm``, which has to be installed.
        variables: environment variables of its processes.
        engine_args: further arguments of vllm serve.
        progress: prints a line to the user.

    Raises:
        StageError: a package or the model is missing, the port is in use, or the server did not become healthy.
    """
    require("serve", NEEDED, "a local endpoint")
    if server == "vllm":
        local_vllm.executable()
    try:
        check_weights(find_model(model_dir))
    except ModelError as error:
        raise StageError(str(error), where=str(model_dir), cure="stage=merge,register,deploy force=true") from error
    folder = (state_dir / endpoint_name).absolute()
    wanted = Endpoint(
        endpoint_name=endpoint_name,
        deployment_name=deployment_name,
        model=model,
        model_dir=str(model_dir.absolute()),
        folder=str(folder),
        port=port,
        startup_timeout_s=startup_timeout_s,
        request_timeout_ms=request_timeout_ms,
        max_concurrent_requests=max_concurrent_requests,
        instance_count=instance_count,
        front_processes=fronts_of(server, variables or {}, instance_count, front_processes),
        server=server,
        variables=dict(variables or {}),
        engine_args=list(engine_args),
    )
    with _alone(folder), sigterm_as_ctrl_c():
        if orphan := _read(folder / STARTING):  # its command was killed while it waited
            stop(orphan, grace_s=1)
        old = find(state_dir, endpoint_name)
        if old and old.port == port:
            new = _replace_in_place(old, wanted, progress)
        else:
            new = _bring_up(wanted, progress)
            if old:
                progress(f"stopping the server that it replaces ({old.model}, port {old.port})")
                stop(old, grace_s=old.request_timeout_ms / 1000 + 5)
        for log in folder.glob("ftkit-*.log*"):
            if not log.name.startswith(Path(new.log).name):
                log.unlink(missing_ok=True)
        return new


def check_startable(state_dir: Path, endpoint_name: str, port: int, server: str) -> None:
    """See that a server could be started, without starting one.

    Raises:
        StageError: a package is missing, or something else than this endpoint holds the port.
    """
    require("serve", NEEDED, "a local endpoint")
    if server == "vllm":
        local_vllm.executable()
    own = find(state_dir, endpoint_name)
    if port and not (own and own.port == port):
        with _holding(port, state_dir):
            pass


def find(state_dir: Path, endpoint_name: str) -> Endpoint | None:
    """The endpoint of this name, if its process is running."""
    endpoint = _read(state_dir / endpoint_name / SERVING)
    return endpoint if endpoint and process_of(endpoint) else None


def find_starting(state_dir: Path, endpoint_name: str) -> Endpoint | None:
    """The server of this endpoint that was started and does not serve yet, if its process is running.

    Its command may wait for it, or may have been killed.
    """
    endpoint = _read(state_dir / endpoint_name / STARTING)
    return endpoint if endpoint and process_of(endpoint) else None


def list_endpoints(state_dir: Path) -> list[Endpoint]:
    """All endpoints whose process is running, by name."""
    names = sorted(path.parent.name for path in state_dir.glob(f"*/{SERVING}"))
    return [endpoint for name in names if (endpoint := find(state_dir, name))]


def stop(endpoint: Endpoint, *, grace_s: float = 10) -> bool:
    """Stop an endpoint: ask it to finish its requests, and kill it after ``grace_s`` seconds.

    Returns:
        Whether it was running. A process that only has its number is left alone.
    """
    was_running = end(endpoint, grace_s)
    for path in (Path(endpoint.folder, SERVING), Path(endpoint.folder, STARTING)):
        if (known := _read(path)) and known.token == endpoint.token:
            path.unlink(missing_ok=True)
    return was_running


def _replace_in_place(old: Endpoint, wanted: Endpoint, progress: Callable[[str], None]) -> Endpoint:
    progress(f"stopping the server that holds port {old.port} ({old.model})")
    stop(old, grace_s=old.request_timeout_ms / 1000 + 5)
    try:
        return _bring_up(wanted, progress)
    except BaseException as error:
        progress("that did not work out; starting the old one again")
        try:
            _bring_up(old, progress)
            outcome = f"{old.model} is served again"
        except StageError as again:
            outcome = f"and {old.model} could not be started again: {again.what}"
        if isinstance(error, StageError):
            raise StageError(f"{error.what}; {outcome}", where=error.where, cure=error.cure) from error
        progress(outcome)
        raise


def _bring_up(wanted: Endpoint, progress: Callable[[str], None]) -> Endpoint:
    """Start a server and wait for it; it is the endpoint from the moment that ``starting.json`` is renamed."""
    folder = Path(wanted.folder)
    token = f"ftkit-{wanted.endpoint_name}-{secrets.token_hex(8)}"
    with _bound(wanted) as listener:
        endpoint = replace(
            wanted,
            port=listener.getsockname()[1],
            token=token,
            log=str(folder / f"{token}.log"),
            traffic={wanted.deployment_name: 100},
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        progress(f"starting {endpoint.model} on port {endpoint.port}, log {endpoint.log}")
        try:
            _write(endpoint)  # known by its token from before it exists: Ctrl-C may come as it is being started
            process = spawn(endpoint, listener)
            endpoint = replace(endpoint, pid=process.pid)
            _write(endpoint)
            listener.close()
            wait_until_healthy(endpoint, process)
            for line in compared_adapters(endpoint):
                progress(line)
            (folder / STARTING).replace(folder / SERVING)
        except BaseException:
            stop(endpoint, grace_s=2)
            raise
    return endpoint


@contextmanager
def _bound(wanted: Endpoint) -> Iterator[socket.socket]:
    """A socket that holds the port from now on; gunicorn inherits it, so nobody can take the port in between."""
    with _holding(wanted.port, Path(wanted.folder).parent) as listener:
        yield listener


@contextmanager
def _holding(port: int, state_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            others = [other for other in list_endpoints(state_dir) if other.port == port]
            by = f" by the endpoint {others[0].endpoint_name}" if others else ""
            said = f"is in use{by}" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise StageError(
                f"port {port} {said}", where=HOST, cure="deployment.port=0, which takes a free one"
            ) from error
        yield listener


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the endpoint's lock; the system gives it back when this process ends, however that comes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise explained(error, folder) from error
    with lock:
        if not take(lock):
            raise StageError(
                f"the endpoint {folder.name} is being deployed already", where=str(folder), cure="wait for it"
            )
        yield


def _write(endpoint: Endpoint) -> None:
    with written_aside(Path(endpoint.folder, STARTING)) as aside:
        aside.write_text(json.dumps(asdict(endpoint), indent=2), encoding="utf-8")


def _read(path: Path) -> Endpoint | None:
    try:
        endpoint = Endpoint(**json.loads(path.read_text(encoding="utf-8")))
        in_place = Path(endpoint.folder).resolve() == path.parent.resolve()
        return endpoint if in_place else None  # a copied folder does not own the server of the original
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StageError(
            f"cannot be read: {error}", where=str(path), cure="stop that server by hand and delete the file"
        ) from error
