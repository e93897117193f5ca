"""Autoscale of a managed endpoint: where there is any, and numbers that Azure Monitor would refuse or never act on."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.config.autoscale import LATENCY
from ftkit.config.schema import Config
from ftkit.errors import Problem

KEY = "deployment.autoscale"
OFF = f"{KEY}.max_instances=null"


def autoscale_is_of_managed_endpoints(config: Config) -> Iterator[Problem]:
    deployment = config.deployment
    if deployment.autoscale.on and not deployment.managed:
        said = f"{deployment.autoscale.max_instances}, which managed endpoints alone have, and deployment.platform is "
        yield Problem(f"{KEY}.max_instances", f"{said}local", "", f"{OFF}, or a compute on Azure ML")


def autoscale_has_room(config: Config) -> Iterator[Problem]:
    count, autoscale = config.deployment.instance_count, config.deployment.autoscale
    if not autoscale.on:
        if autoscale.min_instances is not None:
            said = f"{autoscale.min_instances}, but without max_instances nothing scales"
            more = f"{KEY}.max_instances={count + 1}, or " if autoscale.min_instances <= count else ""
            yield Problem(f"{KEY}.min_instances", said, "", f"{more}{KEY}.min_instances=null")
        return
    least, most = autoscale.bounds(count)
    if most <= least:
        said = f"{most}, which leaves no room above min_instances={least}"
        yield Problem(f"{KEY}.max_instances", said, "", f"{KEY}.max_instances={least + 1}, or {OFF}")
    elif not least <= count <= most:
        said = f"{count}, which autoscale from {least} to {most} does not hold"
        yield Problem("deployment.instance_count", said, "", f"deployment.instance_count={least}")
    else:
        for way, rule in (("scale_out", autoscale.scale_out), ("scale_in", autoscale.scale_in)):
            if rule.value > most - least:
                said = f"{rule.value}, but from {least} to {most} instances it is {most - least} at the most"
                yield Problem(f"{KEY}.{way}.value", said, "", f"{KEY}.{way}.value={most - least}")


def autoscale_has_thresholds(config: Config) -> Iterator[Problem]:
    autoscale = config.deployment.autoscale
    if not autoscale.on:
        return
    metric = autoscale.metric_of(config.deployment.instance_type)
    given = {"scale_out": autoscale.scale_out.threshold, "scale_in": autoscale.scale_in.threshold}
    if metric.startswith(LATENCY):
        for way, example in (("scale_out", 20000), ("scale_in", 5000)):
            if given[way] is None:
                said = f"null, but {metric}, in milliseconds, has no threshold that holds for any model"
                yield Problem(f"{KEY}.{way}.threshold", said, "", f"{KEY}.{way}.threshold={example}")
        if None in given.values():
            return
    else:
        for way, threshold in given.items():
            if threshold is not None and threshold >= 100:
                said = f"{threshold:g}, and {metric} does not go beyond 100"
                yield Problem(f"{KEY}.{way}.threshold", said, "", f"{KEY}.{way}.threshold=80")
    out, back = autoscale.threshold_of("scale_out"), autoscale.threshold_of("scale_in")
    if back >= out:
        said = f"{back:g}, which is not below scale_out's {out:g}: instances would come and go without end"
        yield Problem(f"{KEY}.scale_in.threshold", said, "", f"{KEY}.scale_in.threshold={out / 3:.3g}")


CHECKS = (autoscale_is_of_managed_endpoints, autoscale_has_room, autoscale_has_thresholds)
