"""The stand-in's own view of the blob store: what the service itself reads and writes there."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from azure.storage.blob import (
    BlobSasPermissions,
    BlobServiceClient,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)

from standin import names
from standin.azurite import Azurite
from standin.pki import Pki
from standin.web import ServiceError

CONTAINER_RIGHTS = ContainerSasPermissions(read=True, write=True, create=True, delete=True, list=True, add=True)


class BlobStore:
    """Containers and blobs; a place is ``(container, prefix)``."""

    def __init__(self, azurite: Azurite, pki: Pki):
        self._client = BlobServiceClient(
            azurite.url, credential=names.ACCOUNT_KEY, connection_verify=str(pki.authority), proxies={}
        )
        self._client.create_container(names.CONTAINER)

    def new_container(self) -> str:
        name = f"upload-{uuid.uuid4().hex[:20]}"
        self._client.create_container(name)
        return name

    def container_sas(self, container: str) -> str:
        return generate_container_sas(
            names.ACCOUNT, container, account_key=names.ACCOUNT_KEY, permission=CONTAINER_RIGHTS, expiry=_tomorrow()
        )

    def blob_url(self, blob: str) -> str:
        """A readable address of a blob in the workspace's container, good for a day."""
        token = generate_blob_sas(
            *(names.ACCOUNT, names.CONTAINER, blob),
            account_key=names.ACCOUNT_KEY,
            permission=BlobSasPermissions(read=True),
            expiry=_tomorrow(),
        )
        return f"https://{names.BLOB_HOST}/{names.CONTAINER}/{blob}?{token}"

    def write(self, blob: str, content: bytes) -> None:
        self._client.get_blob_client(names.CONTAINER, blob).upload_blob(content, overwrite=True)

    def names_at(self, uri: str) -> list[str]:
        """Names of the blobs that a URI stands for: one file, or all below a folder."""
        container, prefix = place_of(uri)
        client = self._client.get_container_client(container)
        found = [blob.name for blob in client.list_blobs(name_starts_with=prefix or None)]
        return [name for name in found if not prefix or name == prefix or name.startswith(f"{prefix}/")]

    def fetch(self, uri: str, folder: Path) -> Path:
        """Download what a URI stands for into a folder, below its own last name; return that file or folder.

        Raises:
            FileNotFoundError: nothing is there.
        """
        container, prefix = place_of(uri)
        client = self._client.get_container_client(container)
        root = folder / (prefix.rpartition("/")[2] or "content")
        if not (blobs := self.names_at(uri)):
            raise FileNotFoundError(f"there is nothing at {uri}")
        for blob in blobs:
            path = root / blob.removeprefix(prefix).lstrip("/") if blob != prefix else root
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.download_blob(blob).readall())
        return root

    def upload_folder(self, folder: Path, uri: str, known: Collection[str] = ()) -> None:
        """Upload a folder, as a mount would have; of the blobs that were ``known`` before, those gone are deleted."""
        container, prefix = place_of(uri)
        client = self._client.get_container_client(container)
        files = {
            f"{prefix}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()
        }
        for gone in set(self.names_at(uri)) & set(known) - files.keys():
            client.delete_blob(gone)
        for blob, path in files.items():
            client.upload_blob(blob, path.read_bytes(), overwrite=True)

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """``container/name`` and content of every blob, to look for what should not be there."""
        for container in self._client.list_containers():
            client = self._client.get_container_client(container.name)
            for blob in client.list_blobs():
                yield f"{container.name}/{blob.name}", client.download_blob(blob.name).readall()


def datastore_uri(path: str) -> str:
    return f"azureml://datastores/{names.DATASTORE}/paths/{path}"


def long_uri(uri: str) -> str:
    """The form with subscription and workspace, in which the service answers."""
    group = f"subscriptions/{names.SUBSCRIPTION}/resourcegroups/{names.RESOURCE_GROUP}/workspaces/{names.WORKSPACE}"
    return uri.replace("azureml://datastores/", f"azureml://{group}/datastores/", 1)


def place_of(uri: str) -> tuple[str, str]:
    """Container and prefix that a datastore URI or a blob's address stands for.

    Raises:
        ServiceError: it is of another kind.
    """
    if match := re.fullmatch(r"azureml://(?:.*/)?datastores/([^/]+)/paths/(.*)", uri):
        if match[1] != names.DATASTORE:
            raise ServiceError(404, "ResourceNotFound", f"Could not find datastore: {match[1]}")
        return names.CONTAINER, match[2].strip("/")
    if match := re.fullmatch(rf"https://{re.escape(names.BLOB_HOST)}(?::443)?/([^/?]+)/?([^?]*)(?:\?.*)?", uri):
        return match[1], match[2].strip("/")
    raise ServiceError(400, "UserError", f"{uri} is neither in the workspace's datastore nor in its storage account")


def empty(folder: Path) -> Path:
    """The folder, new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)
