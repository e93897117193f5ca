"""lm-eval's tasks, put to one model after another."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ftkit.chat.messages import system_message
from ftkit.config.lm_eval import include_folder
from ftkit.config.schema import Config
from ftkit.evaluation.asking import Say
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.lm_eval.answers import Chats, HarnessAnswers
from ftkit.evaluation.lm_eval.figures import HarnessComparison, task_rows
from ftkit.evaluation.lm_eval.session import Harness


class Tasks:
    """A context in which lm-eval runs.

    Args:
        config: the whole configuration.
        folder: for the answers as they come, and lm-eval's log.
        say: prints a line to the user.

    Raises:
        StageError: on entering: there is no such task, or its questions cannot be read.
    """

    def __init__(self, config: Config, folder: Path, say: Say):
        self._config, self._folder, self._say = config, folder, say
        settings = config.evaluation.lm_eval
        own = include_folder(settings, config.job.evaluation)
        self._harness = Harness(settings, own, system_message(config.dataset), folder)
        self._figures: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        self._cut_off: dict[str, dict[str, float]] = {}

    def __enter__(self) -> Self:
        self._harness.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._harness.__exit__(kind, error, at)

    def put_to(self, candidate: Candidate) -> None:
        """Ask a model all tasks.

        Raises:
            StageError: lm-eval failed.
        """
        chats = Chats(candidate.tokenizer, self._config)
        answers = HarnessAnswers(candidate, chats, self._config, self._folder, self._say)
        for task in self._config.evaluation.lm_eval.tasks:
            self._figures[task][candidate.name] = self._harness.evaluate(task, partial(answers.answer, task))
        self._cut_off[candidate.name] = answers.cut_off

    def compared(self) -> HarnessComparison:
        """All models that were asked, side by side."""
        rows = [row for task, figures in self._figures.items() for row in task_rows(task, figures)]
        return HarnessComparison(self._harness.version, rows, self._cut_off)
