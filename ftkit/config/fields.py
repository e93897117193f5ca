"""What the typed configuration is built of: names that are checked by a pattern, ranges, and the base of all groups."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}$"
ASSET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"
ENDPOINT_NAME = r"^[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]$"
DATE = r"^\d{4}-\d{2}-\d{2}$"
SHM_SIZE = r"^\d+[kmg]$"
PATTERNS = {
    RUN_NAME: "a name of letters, digits and . _ = , + -",
    ASSET_NAME: "a name of letters, digits and . _ -",
    ENDPOINT_NAME: "a name of 3 to 32 letters, digits and hyphens that begins with a letter",
    DATE: "a date of the form 2026-01-01",
}
"""Each pattern in words, for error messages."""

Name = Annotated[str, Field(pattern=RUN_NAME)]
AssetName = Annotated[str, Field(pattern=ASSET_NAME)]
EndpointName = Annotated[str, Field(pattern=ENDPOINT_NAME)]


class Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )
