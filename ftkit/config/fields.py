"""What the typed configuration is built of: names that are checked by a pattern, ranges, and the base of all groups."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}$"
ASSET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"
ENDPOINT_NAME = r"^[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]$"
SBATCH_WORD = r"^[A-Za-z0-9_.,-]+$"
SBATCH_OPTION = r"^--?[A-Za-z][A-Za-z0-9-]*(=[^\r\n]*)?$"
ENGINE_ARGUMENT = r"^[a-z][a-z0-9_-]*$"
VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
ORIGIN = r"^(\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.\[\]:-]+)$"
HOST_NAME = r"^(\*|[A-Za-z0-9.-]+)$"
HUB_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}/[A-Za-z0-9][A-Za-z0-9._-]{0,47}$"
IDENTITY_ID = (
    r"(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+$"
)
TAG_KEY = r"^[^<>%&\\?/]{1,512}$"
TAG_VALUE = r"^[\s\S]{0,256}$"
SOURCE_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
DATE = r"^\d{4}-\d{2}-\d{2}$"
SHM_SIZE = r"^\d+[kmg]$"
PATTERNS = {
    RUN_NAME: "a name of letters a to z, digits and . _ = , + -",
    ASSET_NAME: "a name of letters a to z, digits and . _ -",
    ENDPOINT_NAME: "a name of 3 to 32 letters, digits and hyphens that begins with a letter",
    SBATCH_WORD: "a name of Slurm's: letters, digits, and _ . , -",
    SBATCH_OPTION: "an option of sbatch, --constraint=h100 for instance",
    ENGINE_ARGUMENT: "the name of an argument of vllm serve without dashes before it, max_model_len for instance",
    VARIABLE_NAME: "the name of an environment variable: letters, digits and _",
    ORIGIN: "an origin of the form https://example.com:8443, without a path, or *",
    HOST_NAME: "the name of a host without port and path, or *",
    HUB_NAME: "a repository of the hub of the form owner/name",
    IDENTITY_ID: "the resource id of a managed identity, "
    "/subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/…",
    TAG_KEY: "the key of a tag, without < > % & \\ ? /",
    TAG_VALUE: "the value of a tag, of at most 256 characters",
    SOURCE_NAME: "a word of letters, digits and _ that begins with a letter",
    DATE: "a date of the form 2026-01-01",
}
"""Each pattern in words, for error messages."""

Name = Annotated[str, Field(pattern=RUN_NAME)]
AssetName = Annotated[str, Field(pattern=ASSET_NAME)]
SbatchWord = Annotated[str, Field(pattern=SBATCH_WORD)]
SbatchOption = Annotated[str, Field(pattern=SBATCH_OPTION)]
EngineArgument = Annotated[str, Field(pattern=ENGINE_ARGUMENT)]
VariableName = Annotated[str, Field(pattern=VARIABLE_NAME)]
Origin = Annotated[str, Field(pattern=ORIGIN)]
HostName = Annotated[str, Field(pattern=HOST_NAME)]
HubName = Annotated[str, Field(pattern=HUB_NAME)]
IdentityId = Annotated[str, Field(pattern=IDENTITY_ID)]
TagKey = Annotated[str, Field(pattern=TAG_KEY)]
TagValue = Annotated[str, Field(pattern=TAG_VALUE)]
SourceName = Annotated[str, Field(pattern=SOURCE_NAME)]
EndpointName = Annotated[str, Field(pattern=ENDPOINT_NAME)]


class Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )
