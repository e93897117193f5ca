"""Environments: the images that jobs and endpoints run in, one version for each content of their files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.ai.ml.entities import BuildContext
from azure.ai.ml.entities import Environment as Entity
from azure.core import PipelineClient
from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
from azure.core.rest import HttpRequest, HttpResponse
from azure.storage.blob import BlobClient

from ftkit.config.option_files import shipped_environment
from ftkit.errors import StageError
from ftkit.files import tree_digest
from ftkit.platforms.azureml import changes
from ftkit.platforms.azureml.errors import is_missing
from ftkit.platforms.azureml.ownership import MADE_BY
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say

ML_SCOPE = "https://ml.azure.com/.default"
POLL_S = 2.0
BUILD_LIMIT_S = 7200.0
BUILDING = 202
"""Status of the answer while an image is being built."""


@dataclass(frozen=True)
class Environment:
    """A version of an environment; ``new`` if it has just been made, so that its image is still to be built."""

    name: str
    version: str
    new: bool

    @property
    def id(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def reference(self) -> str:
        return f"azureml:{self.id}"


def ensure(
    workspace: Workspace,
    kind: str,
    name: str,
    say: Say,
    *,
    image: str = "",
    with_vllm: bool = False,
    routes: Mapping[str, Any] | None = None,
) -> Environment:
    """The version that holds the present files of ``environment/<kind>``; made if there is none.

    Args:
        kind: ``train``, ``serve`` or ``vllm``.
        name: of the environment in the workspace.
        image: what ``$IMAGE`` in its Dockerfile stands for.
        with_vllm: ``serve`` holds a vLLM beside the inference server.
        routes: where a custom container answers: the SDK's ``inference_config``.
    """
    with build_context(kind, image, with_vllm) as folder:
        version = tree_digest(folder)[:12]
        if exists(workspace, name, version):
            return Environment(name, version, new=False)
        say(f"sending the files of environment {name}:{version}; Azure ML builds its image, which takes a while")
        context, tags = BuildContext(path=str(folder)), {**workspace.tags, **MADE_BY}
        wanted = Entity(name=name, version=version, build=context, inference_config=routes, tags=tags)
        doing = ("make the environment", f"{name}:{version}")
        changes.send(workspace, doing, lambda: workspace.client.environments.create_or_update(wanted), say)
    return Environment(name, version, new=True)


def version_of(kind: str, image: str = "", with_vllm: bool = False) -> str:
    """The version that ``ensure`` would find or make."""
    with build_context(kind, image, with_vllm) as folder:
        return tree_digest(folder)[:12]


def exists(workspace: Workspace, name: str, version: str) -> bool:
    """Whether the workspace has this version."""
    try:
        with workspace.asking("look for the environment", f"{name}:{version}"):
            workspace.client.environments.get(name, version)
    except StageError as error:
        if is_missing(error.__cause__):
            return False
        raise
    return True


@contextmanager
def build_context(kind: str, image: str = "", with_vllm: bool = False) -> Iterator[Path]:
    """A folder with the Dockerfile of an image and the pinned requirements, as they ship with ftkit."""
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder, kind)  # the SDK puts the name of the folder into the address: it has to stay the same
        shutil.copytree(shipped_environment() / kind, context)
        if kind == "serve" and not with_vllm:
            (context / "vllm.txt").write_bytes(b"")
        if image:
            dockerfile = context / "Dockerfile"  # Azure ML's builds take no arguments
            text = dockerfile.read_text(encoding="utf-8").replace("ARG IMAGE\nFROM $IMAGE", f"FROM {image}")
            dockerfile.write_text(text, encoding="utf-8")
        yield context


def follow_build(workspace: Workspace, environment: Environment, say: Say) -> None:
    """Wait until the image is built, and print the lines of its log as they come.

    The SDK has no call for this; these are the routes that Azure ML's own studio page uses.

    Raises:
        StageError: the build failed, with its last lines in the message; or it does not end.
    """
    named = f"environments/{environment.name}/versions/{environment.version}/image"
    root = f"https://{workspace.described.location}.api.azureml.ms/environment/v2.0{workspace.described.id}"
    policies = [RetryPolicy(), BearerTokenCredentialPolicy(workspace.credential, ML_SCOPE)]
    lines: list[str] = []
    deadline = changes.now() + BUILD_LIMIT_S
    with PipelineClient(root, policies=policies) as client, workspace.asking("build the image of", environment.id):
        location = _answer(client, HttpRequest("POST", f"{root}/{named}", json={})).json()["location"]
        while True:
            answer = _answer(client, HttpRequest("GET", location))
            state = answer.json()
            if address := state.get("logUrl"):
                found = bytes(BlobClient.from_blob_url(address).download_blob().readall())
                told, lines = len(lines), found.decode("utf-8", "replace").splitlines()
                for line in lines[told:]:
                    say(f"{environment.name}: {line}")
            if answer.status_code != BUILDING:
                break
            if changes.now() > deadline:
                raise StageError(
                    f"the image of {environment.id} is still being built after {BUILD_LIMIT_S / 60:.0f} minutes",
                    where=f"Azure ML's studio, Environments, {environment.name}",
                    cure="the same command follows it on",
                )
            changes.pause(POLL_S)
    if state["status"] != "Succeeded":
        last = " / ".join(line for line in lines[-3:] if line.strip())
        raise StageError(
            f"the image of {environment.id} could not be built: {last or state['status']}",
            where=f"environment/ of ftkit; whole log in Azure ML's studio under Environments, {environment.name}",
            cure="mend the Dockerfile or the requirements; stage=environment environment.wait=true builds again",
        )


def _answer(client: PipelineClient, request: HttpRequest) -> HttpResponse:
    answer = client.send_request(request)
    answer.raise_for_status()
    return answer
