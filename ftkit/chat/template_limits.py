"""Chat templates are programs of strangers: how long they may be, what they may calculate and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ftkit.errors import FtkitError, StageError
from ftkit.processes import within

LARGEST = 1 << 20
"""Characters of a template, and of what it writes for a short chat."""
LONGEST_S = 10.0
"""Seconds that it may write at a short chat; the published one takes milliseconds."""
SYSTEM_LEFT_OUT = "dataset.reasoning_language=null dataset.persona=null, and no system message in the rows"
"""What to do where a template takes no system message."""


def check_template(template: object, where: str, cure: str) -> None:
    """See that a chat template can be read, is no longer than one is, and calculates no powers, which take for ever.

    Raises:
        StageError: it is not so.
    """
    from jinja2 import Environment, TemplateError, nodes

    if not isinstance(template, str):
        raise StageError("has several chat templates, or what is none", where=where, cure=cure)
    if len(template) > LARGEST:
        raise StageError(f"the chat template holds more than {LARGEST:,} characters", where=where, cure=cure)
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (TemplateError, RecursionError):
        return  # it may have tags of transformers; rendering says what is wrong
    if parsed.find(nodes.Pow):
        raise StageError("the chat template calculates a power", where=where, cure=cure)


@contextmanager
def rendering(where: str, cure: str) -> Iterator[None]:
    """What a template raises, or that it does not end, in the user's terms.

    Raises:
        StageError: it does one or the other.
    """
    try:
        with within(LONGEST_S):
            yield
    except FtkitError:
        raise
    except Exception as error:  # a template may raise anything
        why = str(error).partition("\n")[0] or type(error).__name__
        raise StageError(f"the chat template cannot be used: {why}", where=where, cure=cure) from error
