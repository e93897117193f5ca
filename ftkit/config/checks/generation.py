"""``generate``: who writes is there and can be asked, and no held-out question is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ftkit.config.checks.data import nearest_file
from ftkit.config.data_files import READ, find_files
from ftkit.config.dataset import key_of_source
from ftkit.config.generation import SOURCES
from ftkit.config.schema import Config
from ftkit.errors import Problem, nearest


def server_can_be_asked(config: Config) -> Iterator[Problem]:
    settings = config.generate
    if settings.source != "url":
        for name in ("url", "model", "api_key_env"):
            if (value := getattr(settings, name)) is not None:
                what = f"{value}, but generate.source is {settings.source}"
                yield Problem(
                    f"generate.{name}", what, "", f"generate.{name}=null, or ask the server with generate.source=url"
                )
        return
    if settings.url is None:
        yield Problem("generate.url", "null, and generate.source is url", "", "generate.url=http://127.0.0.1:8000/v1")
    elif urlsplit(settings.url).scheme not in ("http", "https") or not urlsplit(settings.url).hostname:
        what = f"{settings.url!r} is no address of a server"
        yield Problem("generate.url", what, "", "generate.url=http://127.0.0.1:8000/v1")
    if settings.model is None:
        what = "null, and generate.source is url: the server's name for the model"
        yield Problem("generate.model", what, "", f"generate.model=<one of those that {settings.url}/models lists>")
    if _asked_for(config) and settings.api_key_env and not os.environ.get(settings.api_key_env):
        what = f"the environment variable {settings.api_key_env} is not set"
        yield Problem(
            "generate.api_key_env", what, "", f"export {settings.api_key_env}=…, or generate.api_key_env=null"
        )


def run_is_there(config: Config) -> Iterator[Problem]:
    source = config.generate.source
    outputs = Path(config.run.outputs)
    if source in SOURCES or not _asked_for(config) or (outputs / source / "merge" / "record.json").is_file():
        return
    runs = [path.parents[1].name for path in outputs.glob("*/merge/record.json")]
    what = f"no run {source!r} with a merged model in {outputs}"
    close = nearest(source, [*runs, *SOURCES])
    cure = f"did you mean generate.source={close}?" if close else "generate.source=merged, base, url, or a run's name"
    yield Problem("generate.source", what, "", cure)


def questions_are_there(config: Config) -> Iterator[Problem]:
    path = config.generate.path
    if path is None or not _asked_for(config):
        return
    found = find_files(path)
    if found is not None and not found.files:
        what = f"no file to read at {path}"
        yield Problem("generate.path", what, "", nearest_file("generate.path", Path(path), f"files are {READ}"))
    for key, other in (
        ("evaluation.path", config.evaluation.path),
        *((f"{key_of_source(name)}.validation", source.validation) for name, source in config.dataset.sources.items()),
    ):
        if other and Path(other).expanduser().resolve() == Path(path).expanduser().resolve():
            what = f"{path} is {key} too: a model tuned on its answers has seen the questions that judge it"
            yield Problem("generate.path", what, "", "generate.path=<other questions>, or null for the training rows'")


def rows_are_laid_out_as_those_of_one_source(config: Config) -> Iterator[Problem]:
    if config.dataset.mix is not None and "generate" in config.stages:
        what = f"{len(config.dataset.mix)} sources, and generate writes its rows in the layout of one"
        cure = "dataset.mix=null dataset.path=<the rows of one source>, in a run of its own"
        yield Problem("dataset.mix", what, "", cure)


def several_samples_need_a_temperature(config: Config) -> Iterator[Problem]:
    settings = config.generate
    if settings.samples > 1 and settings.temperature == 0:
        what = f"{settings.samples}, which would all be the same at temperature 0"
        yield Problem("generate.samples", what, "", "generate.temperature=1.0, or generate.samples=1")


def rewriting_says_what(config: Config) -> Iterator[Problem]:
    settings = config.generate
    if settings.rewrite is None:
        return
    if "{thinking}" not in settings.rewrite:
        what = "has no {thinking} in it, which is what is to be written anew"
        yield Problem("generate.rewrite", what, "", "leave it out: generate=rewrite has a request that works")
    if settings.language is None:
        what = "null, so no thinking is in another language and generate.rewrite has nothing to do"
        yield Problem("generate.language", what, "", "generate.language=ja, or generate.rewrite=null")


def _asked_for(config: Config) -> bool:
    return bool({"generate", "plan"} & {*config.stages})


CHECKS = (
    server_can_be_asked,
    run_is_there,
    questions_are_there,
    rows_are_laid_out_as_those_of_one_source,
    several_samples_need_a_temperature,
    rewriting_says_what,
)
