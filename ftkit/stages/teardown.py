"""stage=teardown: list what runs and what it costs an hour, ask, stop it. Files and registered versions stay.

python -m ftkit experiment=tiny stage=teardown yes=true
"""

from __future__ import annotations

from ftkit.console import agreed
from ftkit.errors import Interrupted, StageError
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.base import Running


def run(context: Context) -> Made:
    """Stop what this run has running: its deployments, and jobs under way. What is others' is shown and left.

    Raises:
        StageError: there is nobody to ask and ``yes=true`` was not given; or something could not be stopped, which is
            told with its price once everything else has been.
        Interrupted: Ctrl-C; says what is left.
    """
    running = [each for platform in context.platforms for each in platform.running()]
    own = [each for each in running if each.stop]
    for each in running:
        context.say(f"{each.what}{_price(each)}" + ("" if each.stop else "; not of this run, and left as it is"))
    if not own:
        return Made(f"nothing of run {context.config.run.name} is running, no endpoint nor any job; nothing to do")
    question = "Stop it?" if len(own) == 1 else f"Stop them, {len(own)} in all?"
    if not agreed(
        question, context.config, "teardown asks before it stops anything, and there is nobody to ask", "yes=true"
    ):
        return Made("left as it is")
    failed = _stop_all(context, own)
    if failed:
        raise StageError(
            f"{len(failed)} of {len(own)} could not be stopped and may still cost money: "
            + "; ".join(f"{each.what}{_price(each)} ({why})" for each, why in failed),
            cure="stage=teardown tries again",
        )
    return Made(f"stopped {', '.join(each.name for each in own)}; models, data and runs stay")


def _stop_all(context: Context, own: list[Running]) -> list[tuple[Running, str]]:
    """Stop one after the other, whatever becomes of the one before; what could not be stopped, and why."""
    failed: list[tuple[Running, str]] = []
    for index, each in enumerate(own):
        assert each.stop
        context.say(f"stopping {each.name}")
        try:
            each.stop()
        except StageError as error:
            context.say(f"{each.name} could not be stopped: {error.what}")
            failed.append((each, error.what))
        except KeyboardInterrupt as error:
            left = [*(each for each, _ in failed), *own[index:]]
            raise Interrupted(
                f"interrupted; may still run: {'; '.join(f'{each.what}{_price(each)}' for each in left)}\n"
                "  cure   stage=teardown goes on"
            ) from error
    return failed


def _price(running: Running) -> str:
    if running.usd_per_hour is None:
        return ", price not known"
    return f", {running.usd_per_hour:,.2f} USD an hour" if running.usd_per_hour else ""
