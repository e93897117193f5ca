"""How much of an upload has been sent, told while Azure ML's SDK sends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import UnsupportedOperation
from typing import Any

from azure.storage.blob import BlobClient, ContainerClient


@contextmanager
def told_of(more: Callable[[int, int], None]) -> Iterator[None]:
    """Tell of the bytes that the SDK sends to a container.

    The SDK itself tells of a file in a folder when it is whole. The client that it sends by takes a ``progress_hook``,
    which the SDK has no way to give, so it is put in here.

    Args:
        more: is called with the bytes sent since the last call, and with those that a further file has; by several
            threads at a time.
    """
    send = ContainerClient.upload_blob

    def send_and_tell(self: ContainerClient, *arguments: Any, **options: Any) -> BlobClient:
        seen = 0

        def tell(sent: int, _of: int | None) -> None:
            nonlocal seen
            more(sent - seen, 0)
            seen = sent

        more(0, _size(options.get("data")))
        return send(self, *arguments, progress_hook=tell, **options)

    storage: Any = ContainerClient
    storage.upload_blob = send_and_tell
    try:
        yield
    finally:
        storage.upload_blob = send


def _size(data: Any) -> int:
    """Bytes of an open file; 0 of anything else."""
    try:
        return os.fstat(data.fileno()).st_size
    except (AttributeError, OSError, UnsupportedOperation):
        return 0
