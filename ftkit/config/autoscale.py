"""The section ``deployment.autoscale``: rules of Azure Monitor for the instances behind a managed endpoint.

Keys have the names of the SDKs: ``min_instances`` and ``max_instances`` of azure-ai-ml's scale settings, the others of
azure-mgmt-monitor's ``MetricTrigger`` and ``ScaleAction``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftkit.config.fields import Group, PositiveInt

GPU, CPU, LATENCY = "GpuUtilizationPercentage", "CpuUtilizationPercentage", "RequestLatency_"
Metric = Literal[
    "GpuUtilizationPercentage", "CpuUtilizationPercentage",
    "RequestLatency_P50", "RequestLatency_P90", "RequestLatency_P95", "RequestLatency_P99",
]  # fmt: skip
"""What Azure ML measures of a deployment: utilisations in percent, latencies in milliseconds."""
PERCENT = {"scale_out": 80.0, "scale_in": 30.0}
"""Thresholds of a utilisation where none is given."""


class ScaleRule(Group):
    """When instances are added, or taken away."""

    threshold: Annotated[float, Field(gt=0)] | None
    """Average of metric_name, in percent or milliseconds, that scale_out acts above and scale_in below; null: 80 and 30
    percent. A latency has none of its own."""
    time_window_minutes: Annotated[int, Field(ge=5, le=720)]
    """Minutes that the average is taken over."""
    value: PositiveInt
    """Instances that are added or taken away at a time."""
    cooldown_minutes: Annotated[int, Field(ge=1, le=10080)]
    """Minutes after a change of the number in which this rule rests; a large model takes 10 to 20 to start."""


class Autoscale(Group):
    """How many instances a managed endpoint has, by its load; none of it without ``max_instances``."""

    min_instances: PositiveInt | None
    """Fewest instances; null: deployment.instance_count. At least 1 runs and costs money, asked or not."""
    max_instances: PositiveInt | None
    """Most instances; null: no autoscale, deployment.instance_count run all the time."""
    metric_name: Metric | None
    """What is measured of the deployment. null: GpuUtilizationPercentage on VM sizes with GPUs, else
    CpuUtilizationPercentage."""
    scale_out: ScaleRule
    """When instances are added."""
    scale_in: ScaleRule
    """When instances are taken away."""

    @property
    def on(self) -> bool:
        return self.max_instances is not None

    def bounds(self, instance_count: int) -> tuple[int, int]:
        """Fewest and most instances of a deployment that starts with ``instance_count``."""
        return self.min_instances or instance_count, self.max_instances or instance_count

    def metric_of(self, instance_type: str | None) -> str:
        """What is measured on a VM size; Azure's sizes with GPUs are those of the series N."""
        has_gpus = (instance_type or "").lower().startswith("standard_n")
        return self.metric_name or (GPU if has_gpus else CPU)

    def threshold_of(self, way: Literal["scale_out", "scale_in"]) -> float:
        """The threshold of one of the two rules; the checks have seen to it that a latency has one."""
        rule = self.scale_out if way == "scale_out" else self.scale_in
        return PERCENT[way] if rule.threshold is None else rule.threshold

    def in_words(self, instance_type: str | None, instance_count: int) -> str:
        """For the user: ``1 to 4 instances; 1 more at GpuUtilizationPercentage over 80 % for 5 min, …``."""
        least, most = self.bounds(instance_count)
        metric = self.metric_of(instance_type)
        unit = "ms" if metric.startswith(LATENCY) else "%"
        out, back = self.scale_out, self.scale_in
        return (
            f"{least} to {most} instances; {out.value} more at {metric} over {self.threshold_of('scale_out'):g} {unit} "
            f"for {out.time_window_minutes} min, {back.value} less under {self.threshold_of('scale_in'):g} {unit} "
            f"for {back.time_window_minutes} min"
        )
