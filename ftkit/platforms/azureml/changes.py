"""A change to a resource: begun, waited for with an end of its own, and looked at on the resource itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError, ServiceResponseError

from ftkit.errors import StageError
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Say

LOOK_S, LINE_S = 20.0, 60.0
"""Seconds between two looks at a resource, and between two lines about it."""
CONFLICT_S = 5.0
CONFLICT_LIMIT_S = 1800.0
"""How long a change waits for another one to end that is still under way."""
LIMIT_S = 1800.0
"""How long a change may take that starts no machine."""
LOST_STATUSES = (408, 500, 502, 503, 504)
IN_THE_WAY = (409, 412)
BEING_SENT = "BlobAlreadyExists"
"""The store's code where a file has come since it was looked for."""
Sent = TypeVar("Sent")


class State(Enum):
    """How far a change is, seen from the resource."""

    DONE = "done"
    UNDER_WAY = "under way"
    FAILED = "failed"
    NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        doing: an infinitive and its object, for messages: ``("delete the endpoint", "tiny")``.
        begin: the SDK's call; returns its poller.
        look: asks the resource how far the change is.
        limit_s: seconds after which it counts as failed.
    """

    doing: tuple[str, str]
    begin: Callable[[], Any]
    look: Callable[[], State]
    limit_s: float = LIMIT_S

    def __str__(self) -> str:
        return " ".join(self.doing)


def make(workspace: Workspace, change: Change, say: Say) -> Any:
    """Begin a change and wait until it is done; where another one is under way, wait for that first.

    Returns:
        What the SDK's poller gives; None where only the resource says that the change is done.

    Raises:
        StageError: it failed, or did not end in time.
    """
    deadline, told = now() + CONFLICT_LIMIT_S, ""
    while True:
        try:
            return _waited(workspace, change, _begun(workspace, change), say)
        except StageError as error:
            if status_of(error) not in IN_THE_WAY or now() > deadline:
                raise
            if error.what != told:
                say(f"waiting to {change}: {error.what.partition(f'{change}: ')[2] or error.what}")
            told = error.what
        pause(CONFLICT_S)


def _begun(workspace: Workspace, change: Change) -> Any:
    """The poller; None if its answer was lost, and the resource shows that the change was begun."""
    try:
        with workspace.asking(*change.doing):
            return change.begin()
    except StageError as error:
        if was_lost(error) and change.look() in (State.DONE, State.UNDER_WAY):
            return None
        raise


def _waited(workspace: Workspace, change: Change, poller: Any, say: Say) -> Any:
    began = said = now()
    while True:
        if poller is None:
            pause(LOOK_S)
        else:
            try:
                with workspace.asking(*change.doing):
                    poller.wait(LOOK_S)
                    if poller.done():
                        return poller.result()
            except StageError:
                if change.look() is State.DONE:
                    return None
                raise
        state = change.look()
        if state is State.DONE:
            return None
        if state is State.FAILED and poller is None:
            why = "it failed"
            raise StageError(f"cannot {change}: {why}")
        if now() - began > change.limit_s:
            why = f"after {change.limit_s / 60:.0f} minutes it is still {state.value}"
            raise StageError(f"cannot {change}: {why}")
        if now() - said >= LINE_S:
            said = now()
            say(f"still waiting to {change}: {(said - began) / 60:.0f} min so far")


def send(workspace: Workspace, doing: tuple[str, str], call: Callable[[], Sent], say: Say) -> Sent:
    """Make a call that uploads files; where somebody else begins to send the same ones at that moment, once more.

    What has the same content lies at the same address, so it matters not whose files come first.

    Args:
        doing: an infinitive and its object.
    """
    deadline = now() + CONFLICT_LIMIT_S
    while True:
        try:
            with workspace.sending(*doing, say):
                return call()
        except StageError as error:
            cause = error.__cause__
            if getattr(cause, "error_code", None) != BEING_SENT or now() > deadline:
                raise
        say("somebody else sends the same files at this moment")
        pause(CONFLICT_S)


def was_lost(error: StageError) -> bool:
    """Whether the service may have done what it was asked: its answer did not come, or was a failure of its own."""
    cause = error.__cause__
    if isinstance(cause, HttpResponseError) and cause.status_code:
        return cause.status_code in LOST_STATUSES
    return isinstance(cause, ServiceRequestError | ServiceResponseError | HttpResponseError)


def status_of(error: StageError) -> int | None:
    """The HTTP status behind an error, if there is one."""
    cause = error.__cause__
    return cause.status_code if isinstance(cause, AzureError) and isinstance(cause, HttpResponseError) else None


def now() -> float:
    return time.monotonic()


def pause(seconds: float) -> None:
    time.sleep(seconds)
