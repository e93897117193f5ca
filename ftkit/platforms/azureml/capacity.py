"""What a region offers, as Azure ML itself gives it: VM sizes, their list prices, and the quota of their families."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ftkit.errors import StageError
from ftkit.platforms.azureml import arm
from ftkit.platforms.azureml.workspace import Workspace

API_VERSION = "2023-04-01"
SPOT_QUOTA = "TotalLowPriorityCores"
"""Spot machines have one quota for all families of a region."""
SPOT_TIERS = ("Spot", "LowPriority")
RESERVE = 1.2
"""Managed endpoints need quota for a fifth more machines than they have, rounded up, for upgrades…"""
WITHOUT_RESERVE = re.compile(
    r"Standard_(NC\w+_A100_v4|NC\w+_H100_v5|ND\w+_A100_v4|ND96asr_v4|ND40rs_v2|ND\w+_H100_v5)", re.IGNORECASE
)
"""…but for those sizes that Azure's list of them says "Skip 20% Reservation" of."""


@dataclass(frozen=True)
class Size:
    """A VM size: its quota's family, its vCPUs, its price in USD an hour by tier (``Standard``, ``Spot``)."""

    name: str
    family: str
    cores: int
    prices: dict[str, float]

    def usd_per_hour(self, spot: bool = False) -> float | None:
        """List price; None if Azure does not give one."""
        tiers = SPOT_TIERS if spot else ("Standard",)
        return next((self.prices[tier] for tier in tiers if tier in self.prices), None)


@dataclass(frozen=True)
class Quota:
    """vCPUs of a family (or of all spot machines) in use, and how many there may be."""

    name: str
    used: int
    limit: int

    def has_room_for(self, cores: int) -> bool:
        return self.limit < 0 or self.used + cores <= self.limit


class Capacity:
    """The workspace's region, asked once."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace

    def size(self, name: str) -> Size:
        """A size by name, case aside.

        Raises:
            StageError: the region does not have it; names the nearest.
        """
        if found := self._sizes.get(name.lower()):
            return found
        near = difflib.get_close_matches(name.lower(), self._sizes, n=1)
        raise StageError(
            f"there is no VM size {name} in {self._workspace.described.location}",
            where=f"workspace {self._workspace.name}",
            cure=f"did you mean {self._sizes[near[0]].name}?" if near else "a workspace in a region that has it",
        )

    def quota(self, size: Size, spot: bool = False) -> Quota | None:
        """The quota that machines of a size count against; None if Azure does not list one."""
        return self._quotas.get((SPOT_QUOTA if spot else size.family).lower())

    @cached_property
    def _sizes(self) -> dict[str, Size]:
        return {found["name"].lower(): _size(found) for found in self._list("vmSizes", "list the VM sizes of")}

    @cached_property
    def _quotas(self) -> dict[str, Quota]:
        found = (
            Quota(usage["name"]["value"], usage["currentValue"], usage["limit"])
            for usage in self._list("usages", "list the quota of")
            if "/workspaces/" not in usage["id"]  # a workspace's own share of it
        )
        return {quota.name.lower(): quota for quota in found}

    def _list(self, kind: str, to: str) -> Iterator[Any]:
        """Items of a collection of the region; the SDK's own calls lose half of their fields."""
        location, subscription = self._workspace.described.location, self._workspace.settings.subscription_id
        path = f"/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}/{kind}"
        return arm.listed(self._workspace, (to, f"the region {location}"), path, API_VERSION)


def _size(found: dict[str, Any]) -> Size:
    listed = (found.get("estimatedVmPrices") or {}).get("values") or ()
    prices = {price["vmTier"]: price["retailPrice"] for price in listed if price["osType"] == "Linux"}
    return Size(found["name"], found["family"], found["vCPUs"], prices)


def machines_counted(size: Size, count: int) -> int:
    """How many machines a deployment of ``count`` takes of the quota."""
    return count if WITHOUT_RESERVE.fullmatch(size.name) else math.ceil(RESERVE * count)


def room(capacity: Capacity, size: Size, count: int, spot: bool = False, *, reserve: bool = False) -> Quota | None:
    """The quota that so many machines count against, if there is room for them.

    Args:
        reserve: they are to serve an endpoint, for which Azure keeps some more.

    Raises:
        StageError: there is none; has the figures.
    """
    counted = machines_counted(size, count) if reserve else count
    quota, cores = capacity.quota(size, spot), size.cores * counted
    if quota and not quota.has_room_for(cores):
        more = f" ({count}, and {counted - count} that Azure keeps for upgrades)" if counted > count else ""
        raise StageError(
            f"the quota is too small: {counted} × {size.name}{more} takes {cores} vCPUs of {quota.name}, "
            f"and {max(0, quota.limit - quota.used)} of {quota.limit} are free",
            cure="ask for more in Azure's portal (Quotas, Machine learning), or take another VM size; stage=teardown "
            "frees what this run has in use",
        )
    return quota


def most_with_room(capacity: Capacity, size: Size, least: int, most: int) -> int:
    """How many machines of an endpoint, from ``least`` to ``most``, the quota has room for."""
    for count in range(most, least, -1):
        try:
            room(capacity, size, count, reserve=True)
            return count
        except StageError:
            continue
    return least
