"""stage=teardown: list what runs and what it costs an hour, ask, stop it. Files and registered versions stay.

python -m ftkit experiment=tiny stage=teardown yes=true
"""

from __future__ import annotations

import sys

from ftkit.errors import StageError
from ftkit.platforms import Running
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Stop what this run has running: the endpoint, and jobs under way.

    Raises:
        StageError: there is nobody to ask and ``yes=true`` was not given.
    """
    running = context.platform.running()
    if not running:
        return Made(f"endpoint {context.config.deployment.endpoint_name} does not run, nor any job; nothing to do")
    for each in running:
        context.say(f"{each.what}{_price(each)}")
    if not context.config.yes and not _agreed("Stop it?" if len(running) == 1 else "Stop them?"):
        return Made("left as it is")
    for each in running:
        context.say(f"stopping {each.name}")
        each.stop()
    stopped = ", ".join(each.name for each in running)
    return Made(f"stopped {stopped}; models, data and runs stay")


def _price(running: Running) -> str:
    if running.usd_per_hour is None:
        return ", price not known"
    return f", {running.usd_per_hour:,.2f} USD an hour" if running.usd_per_hour else ""


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise StageError("teardown asks before it stops anything, and there is nobody to ask", cure="yes=true")
    return input(f"{'':13}{question} [y/N] ").strip().lower() in ("y", "yes")
