"""GPUs of Azure's VM sizes."""

from __future__ import annotations

import re

from ftkit.models.serving_memory import Gpus

SIZES: tuple[tuple[str, Gpus], ...] = (
    (r"NC(4|8|16)as_T4_v3", Gpus("T4", 1, 16, 7.5)),
    (r"NC64as_T4_v3", Gpus("T4", 4, 16, 7.5)),
    (r"NC6s_v3", Gpus("V100", 1, 16, 7.0)),
    (r"NC12s_v3", Gpus("V100", 2, 16, 7.0)),
    (r"NC24r?s_v3", Gpus("V100", 4, 16, 7.0)),
    (r"ND40rs_v2", Gpus("V100", 8, 32, 7.0)),
    (r"NC6s_v2", Gpus("P100", 1, 16, 6.0)),
    (r"NC12s_v2", Gpus("P100", 2, 16, 6.0)),
    (r"NC24r?s_v2", Gpus("P100", 4, 16, 6.0)),
    (r"NV6ads_A10_v5", Gpus("sixth of an A10", 1, 4, 8.6)),
    (r"NV12ads_A10_v5", Gpus("third of an A10", 1, 8, 8.6)),
    (r"NV18ads_A10_v5", Gpus("half of an A10", 1, 12, 8.6)),
    (r"NV36adm?s_A10_v5", Gpus("A10", 1, 24, 8.6)),
    (r"NV72ads_A10_v5", Gpus("A10", 2, 24, 8.6)),
    (r"NC24ads_A100_v4", Gpus("A100", 1, 80, 8.0)),
    (r"NC48ads_A100_v4", Gpus("A100", 2, 80, 8.0)),
    (r"NC96ads_A100_v4", Gpus("A100", 4, 80, 8.0)),
    (r"ND96asr_v4", Gpus("A100", 8, 40, 8.0)),
    (r"ND96amsr_A100_v4", Gpus("A100", 8, 80, 8.0)),
    (r"NCC?40ads_H100_v5", Gpus("H100 NVL", 1, 94, 9.0)),
    (r"NC80adis_H100_v5", Gpus("H100 NVL", 2, 94, 9.0)),
    (r"ND96isr?_H100_v5", Gpus("H100", 8, 80, 9.0)),
    (r"ND96isr_H200_v5", Gpus("H200", 8, 141, 9.0)),
)


def gpus_of(size: str | None) -> Gpus | None:
    """The GPUs of a VM size; None for one that has none, or that is not known."""
    name = (size or "").removeprefix("Standard_").removeprefix("STANDARD_")
    return next((gpus for pattern, gpus in SIZES if re.fullmatch(pattern, name, re.IGNORECASE)), None)
