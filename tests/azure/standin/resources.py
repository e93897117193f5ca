"""The resources of the workspace by path, and long-running operations on them."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from standin import names
from standin.web import Request, Response, Router, ServiceError, answer

Resource = dict[str, Any]
POLL = {"retry-after-ms": "100"}
"""How long clients wait between two looks at an operation; the service asks for seconds."""


class Resources:
    """Resources below the workspace, by path without regard to case. What it hands out are copies."""

    def __init__(self) -> None:
        self._by_path: dict[str, Resource] = {}
        self._lock = threading.RLock()

    def put(self, path: str, body: Mapping[str, Any]) -> tuple[Resource, bool]:
        """Store a resource; return it as the service shows it, and whether it is new."""
        parts = path.split("/")
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        with self._lock:
            old = self._by_path.get(path.lower())
            created = old["systemData"]["createdAt"] if old else now
            resource = {
                **copy.deepcopy(dict(body)),
                "id": f"{names.WORKSPACE_ID}/{path}",
                "name": parts[-1],
                "type": "Microsoft.MachineLearningServices/workspaces/" + "/".join(parts[0::2]),
                "systemData": {
                    **{"createdAt": created, "createdBy": "stand-in", "createdByType": "Application"},
                    **{"lastModifiedAt": now, "lastModifiedBy": "stand-in", "lastModifiedByType": "Application"},
                },
            }
            self._by_path[path.lower()] = resource
            return copy.deepcopy(resource), old is None

    def find(self, path: str) -> Resource | None:
        with self._lock:
            return copy.deepcopy(self._by_path.get(path.lower()))

    def get(self, path: str) -> Resource:
        """Raises ServiceError: there is none."""
        if (resource := self.find(path)) is None:
            raise ServiceError(404, "ResourceNotFound", f"{path} was not found in workspace {names.WORKSPACE}.")
        return resource

    def by_id(self, identifier: str) -> Resource:
        """A resource by its ARM id.

        Raises:
            ServiceError: it belongs to another workspace, or there is none.
        """
        prefix = f"{names.WORKSPACE_ID}/"
        if not identifier.lower().startswith(prefix.lower()):
            raise ServiceError(400, "UserError", f"{identifier} is no resource of workspace {names.WORKSPACE}")
        return self.get(identifier[len(prefix) :])

    def children(self, path: str) -> list[Resource]:
        """Resources directly below a collection, newest first."""
        prefix = f"{path.lower()}/"
        with self._lock:
            found = [
                copy.deepcopy(resource)
                for key, resource in self._by_path.items()
                if key.startswith(prefix) and "/" not in key[len(prefix) :]
            ]
        return found[::-1]

    def change(self, path: str, **properties: Any) -> None:
        """Set some of a resource's properties, if it is still there."""
        with self._lock:
            if resource := self._by_path.get(path.lower()):
                resource["properties"].update(properties)

    def remove(self, path: str) -> bool:
        """Remove a resource and all below it; return whether it was there."""
        key = path.lower()
        with self._lock:
            for below in [other for other in self._by_path if other.startswith(f"{key}/")]:
                del self._by_path[below]
            return self._by_path.pop(key, None) is not None

    def clear(self) -> None:
        with self._lock:
            self._by_path.clear()


class Operations:
    """Long-running operations: a thread each, asked for its state by the client."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}

    def routes(self, router: Router) -> None:
        router.add("GET", f"{names.LOCATION_ID.format(location=names.REGION)}/mfeOperationsStatus/{{name}}", self._show)

    def start(self, work: Callable[[], None]) -> dict[str, str]:
        """Do the work in a thread; return the headers that lead a client to its outcome.

        A ServiceError that the work raises is the operation's error.
        """
        name = uuid.uuid4().hex
        self._states[name] = {"name": name, "status": "InProgress"}
        threading.Thread(target=self._run, args=(name, work), name=f"operation {name}", daemon=True).start()
        location = names.LOCATION_ID.format(location=names.REGION)
        return {"Azure-AsyncOperation": f"https://{names.ARM}{location}/mfeOperationsStatus/{name}", **POLL}

    def _run(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
            self._states[name] = {"name": name, "status": "Succeeded"}
        except ServiceError as error:
            failure = {"code": error.code, "message": error.message}
            self._states[name] = {"name": name, "status": "Failed", "error": failure}
        except Exception as error:
            failure = {"code": "StandInError", "message": repr(error)}
            self._states[name] = {"name": name, "status": "Failed", "error": failure}
            raise

    def _show(self, request: Request, name: str) -> Response:
        state = self._states[name]
        response = answer(state)
        if state["status"] == "InProgress":
            response.headers.update(POLL)
        return response
