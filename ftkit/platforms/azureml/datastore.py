"""The workspace's default datastore: the small files that a job has written are read from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from azure.storage.blob import BlobClient, ContainerClient

from ftkit.errors import StageError
from ftkit.files import written_aside
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.job_files import comes_here


class Datastore:
    """The default datastore, opened with its own key, or with the user's identity where it gives out none."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        with workspace.asking("open the default datastore of", workspace.name):
            found: Any = workspace.client.datastores.get_default(include_secrets=True)
        self.name: str = found.name
        secret = getattr(found.credentials, "account_key", None) or getattr(found.credentials, "sas_token", None)
        self._container = ContainerClient(
            f"{found.protocol}://{found.account_name}.blob.{found.endpoint}",
            found.container_name,
            credential=secret or workspace.credential,
        )

    def address(self, path: str) -> str:
        """``azureml://datastores/…`` of a folder in it."""
        return f"azureml://datastores/{self.name}/paths/{path}"

    def blob(self, path: str) -> BlobClient:
        """One blob in it."""
        return self._container.get_blob_client(path)

    def small_files(self, address: str, folders: Collection[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
        """Files of at most 16 MiB in some folders below an address, by relative path; none of trained weights.

        Raises:
            StageError: the store cannot be read, or a name leads out of the address.
        """
        prefix = address.partition("/paths/")[2].rstrip("/") + "/"
        with self._workspace.asking("read what the job has written in", address):
            for blob in self._container.list_blobs(name_starts_with=prefix):
                parts = blob.name[len(prefix) :].split("/")
                is_file = bool(parts[-1])  # a name that ends in a slash stands for a folder
                if is_file and parts[0] in folders and comes_here(parts, blob.size):
                    yield _inside(parts, address), self._container.download_blob(blob.name).readall()

    def fetch(self, address: str, target: Path) -> None:
        """Bring a folder here, whole or not at all.

        Raises:
            StageError: there is nothing, the store cannot be read, or a name leads out of the address.
        """
        prefix = address.partition("/paths/")[2].rstrip("/") + "/"
        with written_aside(target) as aside, self._workspace.asking("fetch", address):
            aside.mkdir(parents=True)
            for blob in self._container.list_blobs(name_starts_with=prefix):
                parts = blob.name[len(prefix) :].split("/")
                if not parts[-1]:  # a name that ends in a slash stands for a folder
                    continue
                path = aside / _inside(parts, address)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    self._container.download_blob(blob.name).readinto(file)
            if not any(aside.iterdir()):
                raise StageError("it is not there any more", where=address, cure="stage=train in that run again")


def _inside(parts: Sequence[str], address: str) -> PurePosixPath:
    """A blob's name below an address, as a path that stays there."""
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise StageError(
            f"there is a file named {'/'.join(parts)!r}, which would lie outside of the run's folder",
            where=address,
            cure="it was not written, and ftkit makes no such name: who put it there? delete it and try again",
        )
    return PurePosixPath(*parts)
