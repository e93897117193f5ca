"""What a job is to do; imports nothing of Azure's, so that a runner can say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftkit.records import Record


@dataclass(frozen=True)
class Work:
    """What a job is to do.

    Attributes:
        stages: names, in order.
        fingerprint: tells apart what would be made.
        records: of the stages made before, by name.
        earlier: address of the run folder of the job that made some of them; empty if none did.
    """

    stages: Sequence[str]
    fingerprint: str
    records: Mapping[str, Record]
    earlier: str = ""
