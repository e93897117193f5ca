"""VM sizes of the region and the quota of their families; what runs counts against it."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Any, NamedTuple

from standin import names
from standin.web import Request, Response, Router, ServiceError, answer


class Size(NamedTuple):
    """A VM size, with its price per hour in US dollars (invented) for dedicated and for spot machines."""

    name: str
    family: str
    cores: int
    gpus: int
    memory_gb: int
    dedicated_price: float
    spot_price: float


NC_H100 = "standardNCADSH100v5Family"
ND_H100, NC_A100, ND_A100 = "standardNDSH100v5Family", "standardNCADSA100v4Family", "standardNDAMSv4_A100Family"
SIZES = (
    Size("Standard_DS3_v2", "standardDSv2Family", 4, 0, 14, 0.23, 0.05),
    Size("Standard_F4s_v2", "standardFSv2Family", 4, 0, 8, 0.17, 0.04),
    Size("Standard_NC40ads_H100_v5", NC_H100, 40, 1, 320, 6.98, 2.10),
    Size("Standard_NC80adis_H100_v5", NC_H100, 80, 2, 640, 13.96, 4.20),
    Size("Standard_ND96isr_H100_v5", ND_H100, 96, 8, 1900, 98.32, 29.50),
    Size("Standard_NC24ads_A100_v4", NC_A100, 24, 1, 220, 3.67, 1.10),
    Size("Standard_NC96ads_A100_v4", NC_A100, 96, 4, 880, 14.69, 4.41),
    Size("Standard_ND96amsr_A100_v4", ND_A100, 96, 8, 1900, 32.77, 9.83),
)
SPOT = "TotalLowPriorityCores"
LIMITS = {size.family: 160 for size in SIZES} | {ND_H100: 0, ND_A100: 192, SPOT: 300}


class Quota:
    """``limits``: vCPUs by family and of all spot machines, for tests to change; ``in_use``: those that are running."""

    def __init__(self) -> None:
        self.limits = dict(LIMITS)
        self.in_use: Counter[str] = Counter()
        self._lock = threading.Lock()

    def routes(self, router: Router) -> None:
        location = names.LOCATION_ID.format(location="{location}")
        router.add("GET", f"{location}/usages", self._usages)
        router.add("GET", f"{location}/quotas", self._quotas)
        router.add("GET", f"{location}/vmSizes", self._sizes)

    def reset(self) -> None:
        self.limits = dict(LIMITS)

    def take(self, size_name: str, count: int, *, serves: bool = False) -> None:
        """Count machines as in use; those that serve, but for the GPU sizes here, need room for a fifth more.

        Raises:
            ServiceError: no such size, or the family's quota is too small.
        """
        size = find_size(size_name)
        with self._lock:
            used, limit = self.in_use[size.family], self.limits.get(size.family, 0)
            wanted = size.cores * (math.ceil(1.2 * count) if serves and not size.gpus else count)
            if used + wanted > limit:
                raise ServiceError(
                    400,
                    "OutOfQuota",
                    f"Not enough quota available for {size.name} in SubscriptionId {names.SUBSCRIPTION}. "
                    f"Current usage/limit: {used}/{limit}. Additional needed: {wanted}.",
                )
            self.in_use[size.family] += size.cores * count

    def release(self, size_name: str, count: int) -> None:
        size = find_size(size_name)
        with self._lock:
            self.in_use[size.family] -= size.cores * count

    def _usages(self, request: Request, location: str) -> Response:
        prefix = f"{names.LOCATION_ID.format(location=location)}/usages"
        families = self.limits if location == names.REGION else {}
        return answer({"value": [self._usage(prefix, family) for family in families]})

    def _usage(self, prefix: str, family: str) -> dict[str, Any]:
        local = f"Standard {family.removeprefix('standard').removesuffix('Family')} Family Cluster Dedicated vCPUs"
        if family == SPOT:
            local = "Total Cluster LowPriority Regional vCPUs"
        return {
            "id": f"{prefix}/{family}",
            "type": "Microsoft.MachineLearningServices/usages",
            "unit": "Count",
            "currentValue": self.in_use[family],
            "limit": self.limits[family],
            "name": {"value": family, "localizedValue": local},
        }

    def _quotas(self, request: Request, location: str) -> Response:
        return answer({"value": []})

    def _sizes(self, request: Request, location: str) -> Response:
        return answer({"value": [_shown(size) for size in SIZES] if location == names.REGION else []})


def find_size(name: str) -> Size:
    """Raises ServiceError: the region does not have it."""
    for size in SIZES:
        if size.name.lower() == name.lower():
            return size
    raise ServiceError(400, "BadArgument", f"The VM size {name} is not available in location {names.REGION}.")


def _shown(size: Size) -> dict[str, Any]:
    prices = [("Standard", size.dedicated_price), ("LowPriority", size.spot_price), ("Spot", size.spot_price)]
    return {
        "name": size.name,
        "family": size.family,
        "vCPUs": size.cores,
        "gpus": size.gpus,
        "osVhdSizeMB": 1047552,
        "maxResourceVolumeMB": 131072,
        "memoryGB": size.memory_gb,
        "lowPriorityCapable": True,
        "premiumIO": True,
        "estimatedVmPrices": {
            "billingCurrency": "USD",
            "unitOfMeasure": "OneHour",
            "values": [{"retailPrice": price, "osType": "Linux", "vmTier": tier} for tier, price in prices],
        },
        "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
    }
