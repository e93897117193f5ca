"""Checkpoints written beside the next steps: training takes a copy, and a thread brings that to the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from ftkit.errors import FtkitError
from ftkit.processes import free_memory

SHARE_OF_FREE_MEMORY = 0.5
"""What a copy may take of the host's free memory."""


class CheckpointWriter:
    """Writes one checkpoint at a time, on a thread of its own.

    A copy takes the host's memory, 12 bytes a trained parameter with Adam in float32, until the training ends.

    Attributes:
        count: checkpoints that were begun.
        waited_s: seconds for which training waited for them.
    """

    def __init__(self) -> None:
        self.count, self.waited_s = 0, 0.0
        self._copies = HostCopies()
        self._writing: Future[None] | None = None

    def start(self, states: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Copy ``states`` and have the copies written; the one before must have been waited for.

        Where a copy would take too much of the host's memory, the states themselves are written before this returns.

        Args:
            states: tensors, also in dicts, lists and tuples; other values must not change later.
            write: gets the copies.
        """
        assert self._writing is None
        self.count += 1
        copies = self._copies.of(states)
        if copies is None:
            write(states)
            return
        self._writing = Future()
        arguments = (self._writing, write, copies)
        # A daemon: a disk that does not answer must not keep the process from ending.
        threading.Thread(target=_write, args=arguments, name="checkpoint", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether the last write has ended with an error that ``wait`` has not raised yet."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            StageError: it could not be.
        """
        if self._writing is not None:
            self._writing.exception()
            writing, self._writing = self._writing, None
            writing.result()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as time for which training waited."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited_s += time.monotonic() - began

    @contextmanager
    def finishing(self, say: Callable[[str], None]) -> Iterator[None]:
        """Where the block fails, wait for the last checkpoint all the same, and say if that could not be written."""
        try:
            yield
        except BaseException:
            try:
                self.wait()
            except FtkitError as error:
                say(f"the last checkpoint was not written: {error}")
            raise


def _write(writing: Future[None], write: Callable[[dict[str, Any]], None], copies: dict[str, Any]) -> None:
    try:
        write(copies)
    except BaseException as error:
        writing.set_exception(error)
    else:
        writing.set_result(None)


class HostCopies:
    """Copies of tensors in the host's memory, which is kept: fresh memory takes several times as long each time."""

    def __init__(self) -> None:
        self._kept: dict[tuple, torch.Tensor] = {}

    def of(self, states: dict[str, Any]) -> dict[str, Any] | None:
        """The same structure with copies that hold until the next call; None where the host's memory is short.

        Tensors that are one stay one.
        """
        tensors = dict(_tensors(states, ()))
        kept = {path: self._kept[path] for path, tensor in tensors.items() if _alike(tensor, self._kept.get(path))}
        fresh = {_identity(tensor): tensor for path, tensor in tensors.items() if path not in kept}
        if sum(tensor.nbytes for tensor in fresh.values()) > SHARE_OF_FREE_MEMORY * free_memory():
            return None
        made = {key: torch.empty_like(tensor, device="cpu") for key, tensor in fresh.items()}
        self._kept = {path: kept[path] if path in kept else made[_identity(t)] for path, t in tensors.items()}
        for path, tensor in tensors.items():
            self._kept[path].copy_(tensor)
        return self._with_copies(states, ())

    def _with_copies(self, states: Any, path: tuple) -> Any:
        if isinstance(states, torch.Tensor):
            return self._kept[path]
        if isinstance(states, dict):
            return {key: self._with_copies(value, (*path, key)) for key, value in states.items()}
        if isinstance(states, (list, tuple)):
            return type(states)(self._with_copies(value, (*path, i)) for i, value in enumerate(states))
        return states


def _tensors(states: Any, path: tuple) -> Iterator[tuple[tuple, torch.Tensor]]:
    if isinstance(states, torch.Tensor):
        yield path, states.detach()
    elif isinstance(states, (dict, list, tuple)):
        for key, value in states.items() if isinstance(states, dict) else enumerate(states):
            yield from _tensors(value, (*path, key))


def _identity(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _alike(tensor: torch.Tensor, kept: torch.Tensor | None) -> bool:
    return kept is not None and (kept.dtype, kept.shape) == (tensor.dtype, tensor.shape)
