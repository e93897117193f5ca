"""The workspace's default datastore: the small files that a job has written are read from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from azure.storage.blob import ContainerClient

from ftkit.platforms.azureml.workspace import Workspace

LARGEST_BYTES = 16 << 20


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

    def small_files(self, address: str, folders: Collection[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
        """Files of at most 16 MiB in some folders below an address, by relative path; none of trained weights.

        Raises:
            StageError: the store cannot be read.
        """
        prefix = address.partition("/paths/")[2].rstrip("/") + "/"
        with self._workspace.asking("read what the job has written in", address):
            for blob in self._container.list_blobs(name_starts_with=prefix):
                name = PurePosixPath(blob.name[len(prefix) :])
                small = blob.size <= LARGEST_BYTES and not {"adapter", "model"}.intersection(name.parts)
                if name.parts[0] in folders and small:
                    yield name, self._container.download_blob(blob.name).readall()
