"""A claim on an endpoint: one command at a time changes it, on whatever machine; the others wait and are told for whom.

It is a lease on a blob in the workspace's default datastore: the service gives it to one holder alone, and takes it
back from a process that no longer renews it.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from azure.core.exceptions import AzureError

from ftkit.errors import StageError
from ftkit.platforms.azureml import changes
from ftkit.platforms.azureml.changes import status_of
from ftkit.platforms.azureml.datastore import Datastore
from ftkit.platforms.azureml.ownership import Mark
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say

LEASE_S = 60
"""How long a claim outlives a process that was killed on another machine."""
WAIT_LIMIT_S = 7200.0
FOLDER = "ftkit/claims"


class Claim:
    """A claim that is held and renewed until it is released."""

    def __init__(self, lease: Any):
        self._lease = lease
        self._stopping = threading.Event()
        self._renewed = time.monotonic()
        self._renewing = threading.Thread(target=self._renew, name="claim", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Raises StageError: the claim has run out, so somebody else may be at it by now."""
        if time.monotonic() - self._renewed > LEASE_S:
            raise StageError(
                "the claim on the endpoint could not be renewed, and somebody else may be at it by now",
                cure="the same command begins again from what is there",
            )

    def release(self) -> None:
        """Give it back; if the service does not answer it runs out by itself."""
        self._stopping.set()
        self._renewing.join()
        with suppress(AzureError):
            self._lease.release()

    def _renew(self) -> None:
        while not self._stopping.wait(LEASE_S / 4):
            with suppress(AzureError):
                self._lease.renew()
                self._renewed = time.monotonic()


@contextmanager
def claimed(workspace: Workspace, endpoint: str, mark: Mark, say: Say) -> Iterator[Claim]:
    """Hold the claim on an endpoint within the block; wait for it first if another command holds it.

    Raises:
        StageError: somebody else still holds it after two hours; says who, and since when.
    """
    blob = Datastore(workspace).blob(f"{FOLDER}/{endpoint}.claim")
    doing = ("claim the endpoint", endpoint)
    _ensure(workspace, blob, doing)
    claim = Claim(_leased(workspace, blob, mark, doing, say))
    try:
        yield claim
    finally:
        claim.release()


def _ensure(workspace: Workspace, blob: Any, doing: tuple[str, str]) -> None:
    try:
        with workspace.asking(*doing):
            if not blob.exists():
                blob.upload_blob(b"", overwrite=False)
    except StageError as error:
        if status_of(error) not in changes.IN_THE_WAY:  # else another command has just made it
            raise


def _leased(workspace: Workspace, blob: Any, mark: Mark, doing: tuple[str, str], say: Say) -> Any:
    deadline, told, own = changes.now() + WAIT_LIMIT_S, "", str(uuid.uuid4())
    while True:
        try:
            with workspace.asking(*doing):
                lease = blob.acquire_lease(LEASE_S, lease_id=own)  # of its own name: asked for twice, it is one lease
                blob.set_blob_metadata(_written(mark), lease=lease)
                return lease
        except StageError as error:
            if status_of(error) not in changes.IN_THE_WAY:
                raise
        holder = _holder(workspace, blob, doing)
        if _has_died(holder, mark):
            with suppress(StageError), workspace.asking(*doing):
                _lease_of(blob).break_lease(0)
            continue
        who = f"run {holder.get('run') or '?'} of {holder.get('owner') or '?'}, since {holder.get('since') or '?'}"
        if changes.now() > deadline:
            raise StageError(f"{doing[1]} is being changed by {who}", cure="wait until that has ended")
        if who != told:
            say(f"waiting: {doing[1]} is being changed by {who}")
        told = who
        changes.pause(changes.CONFLICT_S)


def _lease_of(blob: Any) -> Any:
    from azure.storage.blob import BlobLeaseClient

    return BlobLeaseClient(blob)


def _holder(workspace: Workspace, blob: Any, doing: tuple[str, str]) -> dict[str, str]:
    with workspace.asking(*doing):
        found: Mapping[str, str] = blob.get_blob_properties().metadata or {}
    return {key: unquote(value) for key, value in found.items()}


def _written(mark: Mark) -> dict[str, str]:
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    kept = {"run": mark.run, "owner": mark.owner, "since": since, "host": platform.node(), "process": str(os.getpid())}
    return {key: quote(value) for key, value in kept.items()}  # metadata travels in headers, which are ASCII


def _has_died(holder: Mapping[str, str], mark: Mark) -> bool:
    """Whether the holder was a process of the same user on this machine that is no longer there."""
    if (holder.get("host"), holder.get("owner")) != (platform.node(), mark.owner) or not holder.get("process"):
        return False
    import psutil

    return holder["process"].isdecimal() and not psutil.pid_exists(int(holder["process"]))
