"""What answers an endpoint's requests: the protocol of an engine, and where each engine is found.

A further engine is a module with ``ENGINE``, its class, a line in ``ENGINES``, and its name in
``deployment.engine`` (``ftkit.config.groups.Deployment``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.limits import Limits

if TYPE_CHECKING:
    from ftkit.serving.endpoint.adapters import Adapters
    from ftkit.serving.endpoint.batching import Job

ENGINES = {
    "vllm": "ftkit.serving.endpoint.vllm_engine",
    "transformers": "ftkit.serving.endpoint.transformers_engine",
}
"""Name of an engine → its module. ``auto`` takes the first that suits this machine."""


class Busy(Exception):
    """As many requests are in hand as are taken."""


class Restarting(Exception):
    """The engine has ended and is being started again."""


class Words(NamedTuple):
    """What an engine is told by the tokenizer.

    Attributes:
        stop_ids: token ids that end an answer.
        probe: token ids of a prompt, for an engine that tries itself.
    """

    stop_ids: Sequence[int]
    probe: Sequence[int]


class Start(NamedTuple):
    """What an engine is started with.

    Attributes:
        folder: of the model, whose weights have been checked; adapters, if any, lie in ``adapters/<name>/``.
        names: that requests may give the model without an adapter, one at least.
        read_words: loads the tokenizer, once, which takes seconds: an engine in a process of its own starts meanwhile.
        limits: of requests; ``concurrent_requests`` are in hand at most.
        arguments: ``deployment.engine_args``, as words of a command line.
        fronts: processes of gunicorn that share one engine.
    """

    folder: Path
    names: Sequence[str]
    read_words: Callable[[], Words]
    limits: Limits
    arguments: Sequence[str]
    fronts: int = 1


class Engine(Protocol):
    """Answers jobs: token ids go in, and token ids come back.

    Raises:
        ModelError: it or an adapter cannot be loaded whole, it does not start, or it applies an adapter otherwise than
            it was trained.
    """

    passed_on: Sequence[str]
    """Fields of a request in OpenAI's format, beside those that ftkit reads itself, that it takes as they are."""
    adapters: Adapters
    """The model and its adapters, by the names that requests use."""
    model: Any
    """The loaded model of transformers, where it runs in this process; else None."""
    where: str
    """What answers, for the line that says so: ``cuda:0 in bfloat16``, ``vLLM``."""
    notes: Sequence[str]
    """What is to be said when it is ready, a line each."""

    def __init__(self, start: Start) -> None: ...

    @classmethod
    def suits(cls) -> bool:
        """Whether it is installed and this machine can run it; asked by ``auto`` alone."""
        ...

    def context(self) -> int | None:
        """Tokens of the longest prompt with its answer, where that may be less than the model's own; else None."""
        ...

    @property
    def in_hand(self) -> int:
        """Jobs that have not ended, and places that are reserved, of all processes that share the engine."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it answers now; health checks ask."""
        ...

    def reserve(self) -> None:
        """Take a place for a job that is about to be submitted, or released.

        Raises:
            Busy: there is none.
            Restarting: nobody would answer it now.
        """
        ...

    def release(self) -> None:
        """Give a place back."""
        ...

    def submit(self, job: Job, *, reserved: bool = False) -> None:
        """Take a job, into the place that was reserved for it, or another one; as ``reserve``. Returns at once."""
        ...

    def stop(self) -> None:
        """End what it has started; jobs in hand may fail."""
        ...


def choose_engine(engine: str) -> str:
    """The engine that is meant: itself, or what ``auto`` stands for here.

    Raises:
        ModelError: there is no such engine.
    """
    if engine in ENGINES:
        return engine
    if engine != "auto":
        raise ModelError(f"FTKIT_ENGINE={engine!r}; there are {', '.join(['auto', *sorted(ENGINES)])}")
    return next(name for name in ENGINES if engine_class(name).suits())


def engine_class(name: str) -> type[Engine]:
    """The class of one of ``ENGINES``."""
    return import_module(ENGINES[name]).ENGINE
