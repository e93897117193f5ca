"""Paths of the configuration that no file system would take: too long, of an unknown user's home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter

from ftkit.config.dataset import key_of_source
from ftkit.config.problems import NotJudged
from ftkit.config.schema import Config
from ftkit.errors import Problem, StageError
from ftkit.files import user_path

KEYS = (
    *("evaluation.path", "evaluation.guard.path", "evaluation.lm_eval.include_path", "invoke.file"),
    *("merge.gguf", "model.pretrained_model_name_or_path", "model.tokenizer", "run.outputs"),
)


def paths_can_be_looked_up(config: Config) -> Iterator[Problem]:
    for key, text in _given(config):
        try:
            user_path(text, key)
        except StageError as error:
            yield Problem(key, f"{error.what}: {error.where}", "", error.cure)


def _given(config: Config) -> Iterator[tuple[str, str]]:
    for key in KEYS:
        with suppress(NotJudged):  # of a group that is faulty itself
            if text := attrgetter(key)(config):
                yield key, text
    with suppress(NotJudged):
        for name, source in config.dataset.sources.items():
            yield from ((f"{key_of_source(name)}.{key}", path) for key in ("path", "validation")
                        if (path := getattr(source, key)))  # fmt: skip
    with suppress(NotJudged):
        for name, path in config.deployment.adapters.items():
            yield f"deployment.adapters.{name}", path
