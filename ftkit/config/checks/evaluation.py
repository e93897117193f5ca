"""Evaluation and the gate: the questions, lm-eval's tasks, and rules that their figures can answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftkit.config.checks import lm_eval
from ftkit.config.checks.data import nearest_file
from ftkit.config.data_files import READ, is_data_file
from ftkit.config.gate import PASS_AT, parse
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME
from ftkit.errors import Problem


def gate_can_be_read(config: Config) -> Iterator[Problem]:
    key = "registration.gate"
    for rule in config.registration.gate:
        try:
            read = parse(rule)
        except ValueError as error:
            yield Problem(key, f"{rule!r}: {error}", "", f"for instance '{key}=[\"thinks_in_japanese >= 0.95\"]'")
            continue
        if read.of_lm_eval and not config.evaluation.lm_eval.tasks:
            what = f"{rule!r}, and evaluate asks no task of lm-eval"
            yield Problem(key, what, "", f"evaluation.lm_eval.tasks=[{read.measure.split('.')[1]}]")
        if (wanted := PASS_AT.fullmatch(read.measure)) and int(wanted[1]) not in config.evaluation.pass_at:
            what = f"{rule!r}, and evaluate does not measure it"
            measured = ",".join(map(str, sorted({*config.evaluation.pass_at, int(wanted[1])})))
            few = config.evaluation.samples < int(wanted[1])
            drawn = f" evaluation.samples={wanted[1]} evaluation.temperature=1.0" if few else ""
            yield Problem(key, what, "", f"evaluation.pass_at=[{measured}]{drawn}")
        if read.against == "adapter" and not config.evaluation.adapter:
            what = f"{rule!r}, and evaluate does not ask the adapter"
            yield Problem(key, what, "", "evaluation.adapter=true, or a rule against base")


def task_file_exists(config: Config) -> Iterator[Problem]:
    if not {"evaluate", "plan"} & {*config.stages} or config.job.records:
        return
    evaluation, kinds = config.evaluation, f"a file of questions and answers is {READ}"
    for key, given in (("evaluation.path", evaluation.path), ("evaluation.guard.path", evaluation.guard.path)):
        path = Path(given or "").expanduser()
        if given is None or (path.is_file() and is_data_file(path)):
            continue
        what = f"{path} is none that can be read" if path.exists() else f"no such file: {path}"
        yield Problem(key, what, "", kinds if path.exists() else nearest_file(key, path, kinds))


def guard_is_asked_here(config: Config) -> Iterator[Problem]:
    guard = config.evaluation.guard.path
    if guard and config.compute.elsewhere and {"evaluate", "plan"} & {*config.stages}:
        what = f"{guard}, and a job on Azure ML takes no second file of questions along"
        yield Problem("evaluation.guard.path", what, "", "evaluation.guard.path=null, or compute=local")


def lm_eval_is_there_with_its_tasks(config: Config) -> Iterator[Problem]:
    settings = config.evaluation.lm_eval
    if not settings.tasks:
        yield from lm_eval.problems_without_tasks(settings)
        return
    yield from lm_eval.problems_of_names(settings)
    if "evaluate" in config.stages:
        in_job = config.compute.elsewhere and BY_NAME["evaluate"].runs_as_job(config)
        yield from lm_eval.problems_of_image() if in_job else lm_eval.problems_here(settings)


def model_before_is_within_reach(config: Config) -> Iterator[Problem]:
    replaced = config.job.replaced
    if (
        config.evaluation.base == "model"
        and replaced
        and config.compute.elsewhere
        and Path(replaced).expanduser().is_dir()
    ):
        what = f"model, which is the folder {replaced}, and a job on Azure ML takes no second model along"
        yield Problem("evaluation.base", what, "", "evaluation.base=start, or compute=local")


def adapter_is_there_to_ask(config: Config) -> Iterator[Problem]:
    if config.evaluation.adapter and config.lora is None:
        what = "true, but lora=none trains no adapter"
        yield Problem("evaluation.adapter", what, "", "evaluation.adapter=false, or lora=experts")


def several_samples_need_a_temperature(config: Config) -> Iterator[Problem]:
    evaluation = config.evaluation
    if evaluation.samples > 1 and evaluation.temperature == 0:
        what = f"{evaluation.samples}, which would all be the same at temperature 0"
        yield Problem("evaluation.samples", what, "", "evaluation.temperature=1.0, or evaluation.samples=1")


def as_many_samples_as_pass_at_k_needs(config: Config) -> Iterator[Problem]:
    evaluation = config.evaluation
    most = max(evaluation.pass_at, default=0)
    if most > evaluation.samples:
        what = f"{most}, and each question has {evaluation.samples} answer{'s' if evaluation.samples > 1 else ''}"
        cure = f"evaluation.samples={most} evaluation.temperature=1.0"
        yield Problem("evaluation.pass_at", what, "", cure)


def language_line_is_there_to_leave_out(config: Config) -> Iterator[Problem]:
    evaluation, language = config.evaluation, config.dataset.reasoning_language
    if evaluation.without_language_line and evaluation.path and not language:
        what = "true, and the questions are asked without such a line: dataset.reasoning_language is null"
        yield Problem("evaluation.without_language_line", what, "", "evaluation.without_language_line=false")


CHECKS = (
    gate_can_be_read,
    task_file_exists,
    lm_eval_is_there_with_its_tasks,
    model_before_is_within_reach,
    adapter_is_there_to_ask,
    several_samples_need_a_temperature,
    as_many_samples_as_pass_at_k_needs,
    guard_is_asked_here,
    language_line_is_there_to_leave_out,
)
