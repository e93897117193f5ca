"""How a command about the endpoint has ended, and what the stand-in shows of the endpoint then."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

from helpers.command import Command, read_until
from standin import StandIn

NAME = "ftkit-tiny"


def succeeds(done: Command) -> str:
    assert done.status == 0, str(done)
    assert done.err == ""
    return done.out


def fails(done: Command, *says: str) -> str:
    assert done.status == 1, str(done)
    assert "Traceback" not in done.err and done.err.startswith("error  ")
    for text in says:
        assert text in done.err, done.err
    return done.out


def traffic(azure: StandIn) -> dict[str, int]:
    return azure.resources.get(f"onlineEndpoints/{NAME}")["properties"]["traffic"]


def puts(azure: StandIn) -> list[dict[str, int]]:
    """The traffic of every change to the endpoint, in order."""
    return [json.loads(seen.body)["properties"].get("traffic") or {} for seen in azure.record.to("PUT", f"/{NAME}$")]


def deployments(azure: StandIn) -> list[str]:
    return sorted(name.removeprefix(f"deployment {NAME}/") for name in azure.costing())


def until(happened: Callable[[], object]) -> None:
    while not happened():
        time.sleep(0.05)


def starting(azure: StandIn, process: subprocess.Popen[str], deployment: str) -> None:
    """Wait until the service has begun to start a deployment."""
    read_until(process, f"{deployment}: starting")
    until(lambda: azure.record.to("PUT", f"/deployments/{deployment}$"))


def ended(process: subprocess.Popen[str]) -> Command:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return Command(process.returncode, out, err)
