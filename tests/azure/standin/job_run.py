"""One command job: image, snapshot, inputs and mounts, then the command on every node, with cancelling and eviction."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from standin import entra, machines, names
from standin.assets import content_uri, output_uri
from standin.faults import EventFault, Faults
from standin.images import Build, Images
from standin.managed_identity import ManagedIdentity
from standin.quota import Quota
from standin.resources import Resource, Resources
from standin.store import BlobStore, empty, long_uri
from standin.web import ServiceError
from standin.workspace import Workspace

TICK_SECONDS = 0.2
IMAGE_LOG = "azureml-logs/20_image_build_log.txt"


class Site(Protocol):
    """What a job needs of the stand-in."""

    resources: Resources
    store: BlobStore
    faults: Faults
    images: Images
    quota: Quota
    workspace: Workspace
    identity: ManagedIdentity
    python: Path

    @property
    def network(self) -> dict[str, str]: ...


class Ending(Enum):
    """How an attempt at a job ended."""

    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELED = "Canceled"
    EVICTED = "Evicted"


class JobRun:
    """A job under way.

    Attributes:
        folder: all of the job's files; ``node-<i>`` hold the snapshot, ``outputs/<name>`` are the mounts.
        attempts: how often its command was started; more than once after an eviction.
        started: set when the command runs for the first time.
        ended, cancelled: events.
        logs: addresses of its logs by name, for the run history.
        error: the error of a failed job, in the run history's form.
    """

    def __init__(self, site: Site, name: str, properties: Resource, folder: Path):
        self._site, self.name, self.folder = site, name, folder
        self.properties = properties
        self.attempts = 0
        self.started, self.ended, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self._evict = threading.Event()
        self._processes: list[machines.Process] = []
        self._eviction: EventFault | None = None
        self.logs: dict[str, str] = {}
        self._published: dict[str, int] = {}
        self._known: dict[str, list[str]] = {}
        self.error: dict[str, Any] | None = None
        self.status = "Queued"

    # Settings.

    @property
    def size(self) -> tuple[str, int]:
        """VM size and number of nodes.

        Raises:
            ServiceError: the cluster is too small, or neither compute nor VM size is given.
        """
        resources = self.properties.get("resources") or {}
        nodes = int(resources.get("instanceCount") or 1)
        if compute := self.properties.get("computeId"):
            cluster = self._site.workspace.cluster(compute)
            if nodes > cluster.nodes:
                raise ServiceError(
                    400, "UserError", f"The job asks for {nodes} nodes and the compute target has {cluster.nodes}."
                )
            return cluster.size, nodes
        if not (size := resources.get("instanceType")):
            raise ServiceError(400, "UserError", "A serverless job names an instance type.")
        return size, nodes

    @property
    def spot(self) -> bool:
        if compute := self.properties.get("computeId"):
            return self._site.workspace.cluster(compute).spot
        return (self.properties.get("queueSettings") or {}).get("jobTier") == "Spot"

    @property
    def processes_per_node(self) -> int:
        return int((self.properties.get("distribution") or {}).get("processCountPerInstance") or 1)

    @property
    def snapshot(self) -> list[str]:
        """Paths of the files in the code snapshot that the job got."""
        code = self.folder / "code"
        return sorted(path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file())

    # Control.

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"job {self.name}", daemon=True).start()

    def evict(self) -> None:
        """Take the spot machines away now.

        Raises:
            ValueError: the job does not run on spot machines.
        """
        if not self.spot:
            raise ValueError(f"{self.name} runs on dedicated machines")
        self._evict.set()

    def pause(self) -> None:
        """Stop its processes where they are, until ``go_on`` or its end: a job that lasts as long as a test needs."""
        for process in self._processes:
            process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        for process in self._processes:
            process.signal(signal.SIGCONT)

    def _run(self) -> None:
        try:
            size, nodes = self.size
            self._site.quota.take(size, nodes)
            try:
                ending = self._attempts(nodes)
            finally:
                self._site.quota.release(size, nodes)
        except (ServiceError, FileNotFoundError) as error:
            ending = Ending.FAILED
            self._fail(getattr(error, "code", "UserError"), str(error))
        except Exception as error:
            ending = Ending.FAILED
            self._fail("StandInError", repr(error))
            traceback.print_exc()
        self._set_status(ending.value)
        self.ended.set()

    def _attempts(self, nodes: int) -> Ending:
        self._set_status("Preparing")
        if fault := self._site.faults.of_event("job"):
            raise ServiceError(500, "ExecutionFailed", fault.detail)
        self._prepare_image()
        self._fetch_code()
        inputs, outputs = self._mount_inputs(), self._mount_outputs()
        command = _filled(self.properties["command"], inputs, outputs)
        while True:
            if self.cancelled.is_set():
                return Ending.CANCELED
            ending = self._attempt(command, nodes, {**_named("INPUT", inputs), **_named("OUTPUT", outputs)})
            self._flush_outputs(outputs)
            if ending is not Ending.EVICTED:
                return ending
            self._set_status("Queued")

    # Preparation.

    def _prepare_image(self) -> None:
        environment = self._site.resources.by_id(self.properties["environmentId"])
        self._site.images.ensure(environment, self._publish_build)

    def _publish_build(self, build: Build) -> None:
        if build.lines:
            self._publish(IMAGE_LOG, build.log.encode())

    def _fetch_code(self) -> None:
        code = empty(self.folder) / "code"
        code.mkdir()
        if identifier := self.properties.get("codeId"):
            fetched = self._site.store.fetch(
                content_uri(self._site.resources.by_id(identifier)), self.folder / "fetched"
            )
            shutil.rmtree(code)
            fetched.rename(code)

    def _mount_inputs(self) -> dict[str, str]:
        mounted = {}
        for name, declared in self.properties["inputs"].items():
            if declared["jobInputType"] == "literal":
                mounted[name] = str(declared["value"])
                continue
            uri = declared["uri"]
            if "://" not in uri:
                uri = content_uri(self._site.resources.by_id(uri))
            mounted[name] = str(self._site.store.fetch(uri, self.folder / "inputs" / name))
        return mounted

    def _mount_outputs(self) -> dict[str, str]:
        """A folder for each output, holding what already lies at its place."""
        mounted, declared = {}, self.properties["outputs"]
        for name, output in declared.items():
            output["uri"] = output.get("uri") or output_uri(self.name, name)
            folder = self.folder / "outputs" / name
            folder.mkdir(parents=True)
            self._known[name] = self._site.store.names_at(output["uri"])
            if self._known[name]:
                folder.rmdir()
                self._site.store.fetch(output["uri"], folder.parent / f"{name}-before").rename(folder)
            mounted[name] = str(folder)
        shown = {name: {**output, "uri": long_uri(output["uri"])} for name, output in declared.items()}
        self._site.resources.change(f"jobs/{self.name}", outputs=shown)
        return mounted

    def _flush_outputs(self, mounted: Mapping[str, str]) -> None:
        for name, folder in mounted.items():
            uri = self.properties["outputs"][name]["uri"]
            self._site.store.upload_folder(Path(folder), uri, self._known[name])
            self._known[name] = self._site.store.names_at(uri)

    # The command.

    def _attempt(self, command: str, nodes: int, paths: Mapping[str, str]) -> Ending:
        self.attempts += 1
        self._evict.clear()
        if self.spot and self._eviction is None:
            self._eviction = self._site.faults.of_event("eviction")
        processes = self._processes = self._started(command, nodes, paths)
        self._set_status("Running")
        self.started.set()
        ending = self._watch(processes)
        failed = next((process for process in processes if process.status), None)
        status = failed.status if failed else 0  # of the one that failed by itself: the others are stopped now
        machines.stop(processes)
        self._publish_logs(processes)
        if ending is Ending.FAILED and failed:
            log = failed.log.relative_to(self.folder).as_posix()
            print(f"job {self.name}, end of {log}:\n{machines.tail(failed.log, 30)}")
            self._fail(
                "UserError",
                f"Execution failed. User process 'bash' exited with status code {status}. "
                f"Please check log file '{log}' for error details.",
            )
        return ending

    def _started(self, command: str, nodes: int, paths: Mapping[str, str]) -> list[machines.Process]:
        per_node, port = self.processes_per_node, machines.free_port()
        processes = []
        for rank in range(nodes * per_node):
            node, local_rank = divmod(rank, per_node)
            folder = self.folder / f"node-{node}"
            if local_rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(self.folder / "code", folder)
            environment = {**self._environment(), **paths}
            if self.properties.get("distribution"):
                environment |= _rendezvous(port, rank, local_rank, node, nodes * per_node, nodes)
            log = self.folder / _log_name(rank, nodes * per_node)
            processes.append(machines.Process(["bash", "-c", command], folder, environment, log))
        return processes

    def _environment(self) -> dict[str, str]:
        tracking = f"azureml://{names.DATA_PLANE}/mlflow/v1.0{names.WORKSPACE_ID}"
        own = {
            "AZUREML_RUN_ID": self.name,
            "AZUREML_RUN_TOKEN": entra.issue(entra.ML_AUDIENCE),
            "AZUREML_EXPERIMENT_NAME": self.properties["experimentName"],
            "AZUREML_ARM_SUBSCRIPTION": names.SUBSCRIPTION,
            "AZUREML_ARM_RESOURCEGROUP": names.RESOURCE_GROUP,
            "AZUREML_ARM_WORKSPACE_NAME": names.WORKSPACE,
            "AZUREML_WORKSPACE_SCOPE": names.WORKSPACE_ID,
            "AZUREML_SERVICE_ENDPOINT": f"https://{names.DATA_PLANE}",
            "MLFLOW_TRACKING_URI": tracking,
            "MLFLOW_RUN_ID": self.name,
            "MLFLOW_EXPERIMENT_NAME": self.properties["experimentName"],
        }
        own["MLFLOW_TRACKING_TOKEN"] = own["AZUREML_RUN_TOKEN"]
        if (self.properties.get("identity") or {}).get("identityType") == "Managed":
            own |= self._site.identity.environment
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        declared = self.properties.get("environmentVariables") or {}
        return {**machines.base_environment(home, self._site.python), **self._site.network, **own, **declared}

    def _watch(self, processes: list[machines.Process]) -> Ending:
        """Until all processes have ended, one has failed, or the job is cancelled, evicted or out of time."""
        deadline = time.monotonic() + _seconds((self.properties.get("limits") or {}).get("timeout"))
        while True:
            self._publish_logs(processes)
            statuses = [process.status for process in processes]
            if any(statuses):
                return Ending.FAILED
            if all(status == 0 for status in statuses):
                return Ending.COMPLETED
            if time.monotonic() > deadline:
                self.cancelled.set()
            if self.cancelled.is_set():
                self._set_status("CancelRequested")
                return Ending.CANCELED
            if self._evict.is_set() or self._eviction_is_due():
                return Ending.EVICTED
            self.cancelled.wait(TICK_SECONDS)

    def _eviction_is_due(self) -> bool:
        if self._eviction is None or self.attempts > 1:
            return False
        return any(path.is_file() for path in (self.folder / "outputs").glob(f"*/{self._eviction.detail}"))

    # What others see.

    def _publish_logs(self, processes: list[machines.Process]) -> None:
        for process in processes:
            self._publish(process.log.relative_to(self.folder).as_posix(), process.log.read_bytes())

    def _publish(self, name: str, content: bytes) -> None:
        if self._published.get(name) == len(content):
            return
        blob = f"ExperimentRun/dcid.{self.name}/{name}"
        self._site.store.write(blob, content)
        self._published[name] = len(content)
        self.logs.setdefault(name, self._site.store.blob_url(blob))

    def _fail(self, code: str, message: str) -> None:
        details = {"code": code, "message": message, "messageParameters": {}, "details": []}
        self.error = {"error": details, "time": "0001-01-01T00:00:00.000Z"}

    def _set_status(self, status: str) -> None:
        self.status = status
        self._site.resources.change(f"jobs/{self.name}", status=status)


def _filled(command: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    """The command with its inputs and outputs put in.

    Raises:
        ServiceError: it refers to one that is not declared.
    """
    for kind, values in (("inputs", inputs), ("outputs", outputs)):
        for name, value in values.items():
            command = command.replace(f"${{{{{kind}.{name}}}}}", value)
    if left := re.search(r"\$\{\{.*?\}\}", command):
        raise ServiceError(400, "UserError", f"{left[0]} in the command is neither an input nor an output of the job.")
    return command


def _named(kind: str, paths: Mapping[str, str]) -> dict[str, str]:
    return {f"AZURE_ML_{kind}_{name}": path for name, path in paths.items()}


def _log_name(rank: int, processes: int) -> str:
    digits = len(str(processes - 1))
    return f"user_logs/std_log_process_{rank:0{digits}d}.txt" if processes > 1 else "user_logs/std_log.txt"


def _rendezvous(port: int, rank: int, local_rank: int, node: int, world: int, nodes: int) -> dict[str, str]:
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "NODE_RANK": str(node),
        "LOCAL_WORLD_SIZE": str(world // nodes),
        "AZUREML_NODE_COUNT": str(nodes),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _seconds(duration: str | None) -> float:
    """ISO 8601 as the SDK writes it; no limit if there is none."""
    if not duration:
        return float("inf")
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", duration)
    if match is None:
        raise ServiceError(400, "UserError", f"{duration} is no duration")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
