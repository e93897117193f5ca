"""Versions of code, data, environments and models: immutable, found again by the hash of their content."""

from __future__ import annotations

import re
import uuid
from typing import Any

from standin import names
from standin.resources import Resource, Resources
from standin.store import BlobStore, datastore_uri, long_uri
from standin.web import Request, Response, Router, ServiceError, answer

CONTENT = {
    "codes": ("codeUri",),
    "data": ("dataUri", "dataType"),
    "models": ("modelUri", "modelType"),
    "environments": ("build", "image", "condaFile", "inferenceConfig"),
}
"""The properties that no later request may change, by kind of asset."""


class Assets:
    """The routes of versioned assets."""

    def __init__(self, resources: Resources, store: BlobStore):
        self._resources, self._store = resources, store

    def routes(self, router: Router) -> None:
        for kind in CONTENT:
            collection = f"{names.WORKSPACE_ID}/{kind}"
            version = f"{collection}/{{name}}/versions/{{version}}"
            for template, handlers in {
                collection: {"GET": self._list},
                f"{collection}/{{name}}": {"GET": self._container, "PUT": self._put_container},
                f"{collection}/{{name}}/versions": {"GET": self._versions},
                version: {"GET": self._get, "PUT": self._put, "PATCH": self._put, "DELETE": self._delete},
                f"{version}/startPendingUpload": {"POST": self._start_upload},
            }.items():
                for method, handler in handlers.items():
                    router.add(method, template, _of_kind(kind, handler))

    def _list(self, request: Request, kind: str) -> Response:
        return answer({"value": self._resources.children(kind)})

    def _container(self, request: Request, kind: str, name: str) -> Response:
        return answer(self._resources.get(f"{kind}/{name}"))

    def _put_container(self, request: Request, kind: str, name: str) -> Response:
        resource, _ = self._resources.put(f"{kind}/{name}", request.json)
        return answer(resource)

    def _versions(self, request: Request, kind: str, name: str) -> Response:
        wanted = request.query.get("hash")
        everywhere = wanted and kind == "codes"  # the SDK asks under a name that it has just made up
        searched = [container["name"] for container in self._resources.children(kind)] if everywhere else [name]
        found = [version for each in searched for version in self._resources.children(f"{kind}/{each}/versions")]
        if wanted:
            found = [version for version in found if _hash(version) == wanted]
        return answer({"value": found[: int(request.query.get("$top", len(found)))]})

    def _get(self, request: Request, kind: str, name: str, version: str) -> Response:
        return answer(self._resources.get(f"{kind}/{name}/versions/{version}"))

    def _delete(self, request: Request, kind: str, name: str, version: str) -> Response:
        return answer(status=200 if self._resources.remove(f"{kind}/{name}/versions/{version}") else 204)

    def _put(self, request: Request, kind: str, name: str, version: str) -> Response:
        path, body = f"{kind}/{name}/versions/{version}", request.json
        properties = body["properties"]
        if kind == "models":
            properties["modelUri"] = self._checked_model(properties["modelUri"])
            properties.setdefault("flavors", {})
        properties.setdefault("tags", {})
        properties.setdefault("properties", {})
        if old := self._resources.find(path):
            _check_unchanged(kind, name, version, old["properties"], properties)
        resource, new = self._resources.put(path, body)
        self._update_container(kind, name, version)
        return answer(resource, 201 if new else 200)

    def _update_container(self, kind: str, name: str, version: str) -> None:
        following = str(int(version) + 1) if version.isdigit() else "1"
        properties = {"latestVersion": version, "nextVersion": following, "tags": {}, "properties": {}}
        self._resources.put(f"{kind}/{name}", {"properties": properties})

    def _checked_model(self, uri: str) -> str:
        """A model's URI in terms of the datastore; a job's output is looked up, nothing is copied.

        Raises:
            ServiceError: the job, its output, or what should be there does not exist.
        """
        if match := re.fullmatch(r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths/?(.*))?", uri):
            outputs = self._resources.get(f"jobs/{match[1]}")["properties"].get("outputs") or {}
            if not (output := outputs.get(match[2])) or not output.get("uri"):
                raise ServiceError(400, "UserError", f"The job {match[1]} has no output named {match[2]}.")
            uri = f"{output['uri'].rstrip('/')}/{match[3] or ''}"
        if not self._store.names_at(uri):
            raise ServiceError(400, "UserError", f"The specified path {uri} does not exist.")
        return long_uri(uri)

    def _start_upload(self, request: Request, kind: str, name: str, version: str) -> Response:
        container = self._store.new_container()
        uri = f"https://{names.BLOB_HOST}/{container}"
        credential = {"credentialType": "SAS", "sasUri": f"{uri}?{self._store.container_sas(container)}"}
        return answer(
            {
                "pendingUploadId": str(uuid.uuid4()),
                "pendingUploadType": "TemporaryBlobReference",
                "blobReferenceForConsumption": {
                    "blobUri": uri,
                    "storageAccountArmId": names.ACCOUNT_ID,
                    "credential": credential,
                },
            }
        )


def content_uri(asset: Resource) -> str:
    """Where the content of a code, data or model version lies."""
    properties = asset["properties"]
    return next(properties[key] for key in ("codeUri", "dataUri", "modelUri") if key in properties)


def output_uri(job: str, output: str) -> str:
    """Where a job's output goes that names no place of its own."""
    return datastore_uri(f"azureml/{job}/{output}/")


def _of_kind(kind: str, handler: Any) -> Any:
    return lambda request, **arguments: handler(request, kind, **arguments)


def _hash(version: Resource) -> str | None:
    return version["properties"]["properties"].get("hash_sha256")


def _check_unchanged(kind: str, name: str, version: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in CONTENT[kind]:
        if key in new and _comparable(old.get(key)) != _comparable(new[key]):
            raise ServiceError(
                409,
                "UserError",
                f"A {kind} version with this name and version already exists ({name}:{version}) and its {key} "
                "cannot be changed. Use a different name or version.",
            )


def _comparable(value: Any) -> Any:
    """A URI without the optional subscription and workspace in it; anything else as it is."""
    if isinstance(value, str):
        return re.sub(r"^azureml://.*?/?datastores/", "azureml://datastores/", value)
    return value
