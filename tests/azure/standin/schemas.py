"""Holds the bodies that clients PUT against Microsoft's published schemas of the api-version they were sent to."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft4Validator, Draft7Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

FOLDER = Path(__file__).resolve().parent.parent / "schemas"
COMMON_ID = "https://schema.management.azure.com/schemas/common/definitions.json"
VERSIONS = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("2*.json.gz"))


class Deviation(NamedTuple):
    """A way in which azure-ai-ml itself departs from the schema: where (expressions), and why it is let pass."""

    resource: str
    place: str
    message: str


DEVIATIONS = (
    # The SDK sends the version of its hashing as an integer among properties that are strings.
    Deviation("codes_versions", r"properties/properties/hash_version", "is not of type 'string'"),
    # goal="Minimize" goes out in lower case.
    Deviation("jobs", r"properties(/objective/goal)?", "minimize|maximize"),
    # queue_settings carry a priority that 2025-01-01-preview no longer has; the service ignores it.
    Deviation("jobs", r"properties/queueSettings", "'priority' was unexpected"),
    # egress_public_network_access goes out in lower case.
    Deviation("onlineEndpoints_deployments", r"properties(/egressPublicNetworkAccess)?", "enabled|disabled"),
    # A scoring route of "/" has none of the letters that the schema's pattern asks for.
    Deviation("environments_versions", r"properties/inferenceConfig/scoringRoute/path", "'/' does not match"),
)


class UnknownVersion(Exception):
    """There is no schema for the api-version."""


def problems(api_version: str, kinds: list[str], name: str, body: dict[str, Any]) -> list[str]:
    """What is wrong with a resource's body, a line for each; ``kinds`` are its path's types below the workspace.

    Raises:
        UnknownVersion: the schema of this api-version is not among those kept in ``tests/azure/schemas``.
    """
    resource = "_".join(kinds)
    return [
        f"{place or 'body'}: {message}"
        for place, message in _errors(api_version, kinds, name, body)
        if not _allowed(resource, place, message)
    ]


def _allowed(resource: str, place: str, message: str) -> bool:
    return any(
        resource == deviation.resource
        and re.fullmatch(deviation.place, place)
        and re.search(deviation.message, message)
        for deviation in DEVIATIONS
    )


def _errors(api_version: str, kinds: list[str], name: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    document, registry = _document(api_version)
    definition = "_".join(["workspaces", *kinds])
    if definition not in document["resourceDefinitions"]:
        raise UnknownVersion(f"{api_version} has no {definition}")
    sent = {key: value for key, value in body.items() if key not in ("id", "systemData", "name", "type")}
    instance = {
        "name": name,
        "type": "/".join(["Microsoft.MachineLearningServices/workspaces", *kinds]),
        "apiVersion": api_version,
        **sent,
    }
    schema = {"$ref": f"{document['id'].rstrip('#')}#/resourceDefinitions/{definition}"}
    for error in _Validator(schema, registry=registry).iter_errors(instance):
        deepest = _deepest(error)
        yield "/".join(map(str, deepest.absolute_path)), deepest.message[:300]


def _deepest(error: ValidationError) -> ValidationError:
    """The most telling of the errors below one: that of the alternative which the body was meant for."""
    while error.context:
        branches: dict[Any, list[ValidationError]] = {}
        for below in error.context:
            branches.setdefault(below.relative_schema_path[0], []).append(below)
        error = min(branches.values(), key=_misfit)[0]
    return error


def _misfit(errors: list[ValidationError]) -> tuple[bool, bool, int]:
    """How little an alternative was meant: it has another discriminator, another JSON type, more errors."""
    return (
        any(
            error.validator in ("enum", "const") and error.path and str(error.path[-1]).endswith("Type")
            for error in errors
        ),
        any(error.validator == "type" and not error.relative_path for error in errors),
        len(errors),
    )


_Validator = extend(Draft4Validator, {"const": Draft7Validator.VALIDATORS["const"]})


@cache
def _document(api_version: str) -> tuple[dict[str, Any], Registry]:
    if api_version not in VERSIONS:
        raise UnknownVersion(f"no schema of api-version {api_version} in {FOLDER.name}/ (there are {VERSIONS})")
    document = strict(_read(api_version))
    resources = [(document["id"].rstrip("#"), document), (COMMON_ID, _read("common_definitions"))]
    return document, Registry().with_resources([(uri, Resource(content, DRAFT4)) for uri, content in resources])


def _read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """Make a published schema refuse unknown keys, in place, and return it.

    The files say ``additionalProperties: false`` on the base of each polymorphic type, so that no subtype could ever
    match: the strictness moves to base and subtype together. Plain objects become strict as well.
    """
    definitions = document["definitions"]
    bases = {name for name, definition in definitions.items() if _alternatives(definition) is not None}
    for name in bases:
        base = definitions[name]["allOf"][0]
        base.pop("additionalProperties", None)
        for alternative in _alternatives(definitions[name]) or []:
            for part in alternative.get("allOf", []):
                subtype = part.get("$ref", "").rpartition("/")[2]
                if not subtype or subtype in bases:
                    continue
                merged = copy.deepcopy(definitions[subtype])
                merged["properties"] = {**base.get("properties", {}), **merged.get("properties", {})}
                merged["additionalProperties"] = False
                definitions[f"{name}__{subtype}"] = merged
                part["$ref"] = f"#/definitions/{name}__{subtype}"
    for name, definition in definitions.items():
        if name not in bases and definition.get("type") == "object" and definition.get("properties"):
            definition.setdefault("additionalProperties", False)
    return document


def _alternatives(definition: dict[str, Any]) -> list[dict[str, Any]] | None:
    return next((part["oneOf"] for part in definition.get("allOf", []) if "oneOf" in part), None)
