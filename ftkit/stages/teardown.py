"""stage=teardown: list what runs and what it costs an hour, ask, stop it. Files and registered versions stay.

python -m ftkit experiment=tiny stage=teardown yes=true
"""

from __future__ import annotations

from ftkit.config.compute import label_of
from ftkit.console import agreed
from ftkit.errors import Interrupted, StageError
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.base import Running


def run(context: Context) -> Made:
    """Stop what this run has running: its deployments, and jobs under way. What is others' is shown and left.

    Raises:
        StageError: there is nobody to ask and ``yes=true`` was not given; or a platform could not be asked what runs
            there, or something could not be stopped, which is told with its price once everything else has been.
        Interrupted: Ctrl-C; says what is left.
    """
    running, unknown = _find(context)
    own = [each for each in running if each.stop]
    for each in running:
        context.say(f"{each.what}{_price(each)}" + ("" if each.stop else "; not of this run, and left as it is"))
    for error in unknown if own else ():
        context.say(f"{error.what}; the rest is stopped all the same")
    question = "Stop it?" if len(own) == 1 else f"Stop them, {len(own)} in all?"
    alone = "teardown asks before it stops anything, and there is nobody to ask"
    stopped = own if own and agreed(question, context.config, alone, "yes=true") else []
    failed = _stop_all(context, stopped)
    _raise_what_is_left(stopped, failed, unknown)
    if not own:
        return Made(f"nothing of run {context.config.run.name} is running, no endpoint nor any job; nothing to do")
    if not stopped:
        return Made("left as it is")
    return Made(f"stopped {', '.join(each.name for each in own)}; models, data and runs stay")


def _find(context: Context) -> tuple[list[Running], list[StageError]]:
    """What runs on each platform that the run may use; and for each that could not be asked, why."""
    running: list[Running] = []
    unknown: list[StageError] = []
    for name in context.config.platforms:
        try:
            running += context.platform_named(name).running()
        except StageError as error:
            what = f"what runs on {label_of(name)} is not known: {error.what}"
            unknown.append(StageError(what, where=error.where, cure=error.cure))
    return running, unknown


def _raise_what_is_left(asked: list[Running], failed: list[tuple[Running, str]], unknown: list[StageError]) -> None:
    """Raises StageError: something could not be stopped, or a platform could not be asked."""
    if failed:
        listed = "; ".join(f"{each.what}{_price(each)} ({why})" for each, why in failed)
        what = f"{len(failed)} of {len(asked)} could not be stopped and may still cost money: {listed}"
        unknown = [StageError(what, cure="stage=teardown tries again"), *unknown]
    if unknown:
        where = next((error.where for error in unknown if error.where), "")
        cures = "; ".join(error.cure for error in unknown if error.cure)
        raise StageError("; ".join(error.what for error in unknown), where=where, cure=cures)


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
