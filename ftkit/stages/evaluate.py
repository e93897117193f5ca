"""stage=evaluate: put questions to the base and to the merged model; show what has changed, for better and for worse.

python -m ftkit experiment=tiny stage=evaluate
python -m ftkit experiment=tiny stage=evaluate evaluation.adapter=true
python -m ftkit experiment=tiny stage=evaluate evaluation.temperature=1.0 evaluation.samples=4
python -m ftkit experiment=tiny stage=evaluate evaluation.without_language_line=true
python -m ftkit stage=evaluate evaluation.lm_eval.tasks=[gsm8k] evaluation.lm_eval.python=lm-eval/bin/python
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.cells import set_cell_size
from rich.table import Table
from rich.text import Text

from ftkit.config.groups import Evaluation
from ftkit.config.lm_eval import include_folder
from ftkit.config.schema import Config
from ftkit.console import console, listing, print_listing
from ftkit.errors import StageError
from ftkit.evaluation.asking import Asked, Asking
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.card import write_card
from ftkit.evaluation.comparison import Comparison, Pair, Row, write_comparison
from ftkit.evaluation.language_line import heldout_without_line, task_without_line
from ftkit.evaluation.lm_eval.figures import HarnessComparison, table_of
from ftkit.evaluation.lm_eval.tasks import Tasks
from ftkit.evaluation.measures import MEASURES, Answer
from ftkit.evaluation.questions import (
    Question,
    guard_of,
    heldout_questions,
    in_words,
    name_of,
    task_file,
    task_questions,
    trained_on,
)
from ftkit.files import sha256, tree_digest, written_aside
from ftkit.library_logs import libraries_to
from ftkit.pipeline.stage import Context, Made
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows
from ftkit.translation import said

ANSWERS, PAGE = "answers.jsonl", "report.html"
LIBRARY_LOG = "library.log"
GUARD, WITHOUT_LINE = "guard", "without_language_line"
"""Names of what is asked beside the questions, in the record and in ``ANSWERS``."""
NOT_HELD_OUT = "what the model makes of them says nothing of new questions"
SHOWN = ("thinking", "output", *MEASURES, "seconds")


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of a file of questions, and of a folder with tasks for lm-eval."""
    evaluation, mounted = config.evaluation, config.job.evaluation
    path, tasks = task_file(evaluation, mounted), include_folder(evaluation.lm_eval, mounted)
    found = {"task": sha256(path)} if path and path.is_file() else {}
    guard = Path(evaluation.guard.path).expanduser() if evaluation.guard.path else None
    found |= {"guard": sha256(guard)} if guard and guard.is_file() else {}
    return found | ({"lm_eval_tasks": tree_digest(tasks)} if tasks and tasks.is_dir() else {})


def run(context: Context) -> Made:
    """Ask the models, write every answer and the page, print figures and one example.

    Raises:
        StageError: no row is held out, the file of questions cannot be used, or the adapter is not here.
    """
    config, merged = context.config, context.needs["merge"]
    context.folder.mkdir(parents=True, exist_ok=True)
    with libraries_to(context.folder / LIBRARY_LOG):
        compared, beside, by_lm_eval = _compare(context)
    untold, guard = beside.get(WITHOUT_LINE), beside.get(GUARD)
    _print(compared, config.evaluation)
    if untold:
        print_listing(_table("without the language line", untold, untold.of_language))
    if guard:
        _print(guard, guard_of(config.evaluation))
    if by_lm_eval:
        print_listing(table_of(by_lm_eval, config.evaluation.adapter))
        for text in by_lm_eval.cut_off_in_words:
            limit = config.evaluation.max_new_tokens
            context.say(f"{text} at {limit} tokens; for more of them evaluation.max_new_tokens={4 * limit}")
    with written_aside(context.folder / ANSWERS) as aside:
        _write(aside, compared, beside)
    write_comparison(context.folder / PAGE, compared, config, by_lm_eval, guard, untold)
    result = {"task": name_of(config.evaluation), **compared.result()}
    if untold:
        result[WITHOUT_LINE] = untold.result()
    if guard:
        result[GUARD] = {"task": guard_of(config.evaluation).name, **guard.result()}
    if by_lm_eval:
        result["lm_eval"] = by_lm_eval.result()
    if merged.run_folder == context.run_folder:  # not where a job finds a model that an earlier one has made
        train, data = context.needs["train"].record, context.needs["publish"].record
        model = merged.run_folder / merged.record.result["folder"]
        write_card(model, config, trained=train, data=data, merged=merged.record.result, evaluated=result)
    shares = f"{result['base']['thinks_in_japanese']:.2f} → {result['merged']['thinks_in_japanese']:.2f}"
    summary = (
        f"{in_words(compared.questions, config.evaluation)}: thinking in Japanese {shares}; {context.folder / PAGE}"
    )
    return Made(summary, [context.folder / ANSWERS, context.folder / PAGE], result)


def _compare(context: Context) -> tuple[Comparison, dict[str, Comparison], HarnessComparison | None]:
    """Ask one model after the other, all questions and lm-eval's tasks while its weights are loaded.

    Returns:
        What they made of the questions, of those beside them by name (``_beside``), and of lm-eval's tasks.
    """
    config = context.config
    candidates = _candidates(context)
    with Tasks(config, context.folder, context.say) if config.evaluation.lm_eval.tasks else nullcontext() as tasks:
        questions = _questions(context)
        tokens = None if config.evaluation.path else published_rows(context) / TOKENS
        main = Asking(questions, config, tokens, context.folder, context.say)
        askings = {"": main} | _beside(context, questions)
        asked: dict[str, dict[str, Asked]] = {name: {} for name in askings}
        for candidate in candidates:
            for name, asking in askings.items():
                asked[name][candidate.name] = asking.ask(candidate)
            if tasks:
                tasks.put_to(candidate)
            candidate.release()
    known = _trained_on(context, questions) if config.evaluation.path else 0
    made = {name: Comparison(of["base"], of["merged"], of.get("adapter")) for name, of in asked.items()}
    compared = replace(made.pop(""), trained_on=known, pass_at=tuple(config.evaluation.pass_at))
    return compared, made, tasks.compared() if tasks else None


def _beside(context: Context, questions: Sequence[Question]) -> dict[str, Asking]:
    """What is asked beside the questions: those of ``evaluation.guard``, and the same without the language line."""
    asked = {}
    if guarding := _guarding(context):
        asked[GUARD] = guarding
    if context.config.evaluation.without_language_line:
        untold = _without_line(context, questions)
        asked[WITHOUT_LINE] = Asking(untold, context.config, None, context.folder, context.say, name="without-line")
    return asked


def _without_line(context: Context, questions: Sequence[Question]) -> list[Question]:
    from ftkit.models.loading import load_tokenizer

    config, tokenizer = context.config, load_tokenizer(context.config.model)
    if path := task_file(config.evaluation, config.job.evaluation):
        return task_without_line(path, config, tokenizer)
    rows = published_rows(context) / f"{context.needs['publish'].record.result['name']}.parquet"
    return heldout_without_line(questions, rows, config, tokenizer)


def _guarding(context: Context) -> Asking | None:
    """What asks the questions of ``evaluation.guard``, if there are any."""
    from ftkit.models.loading import load_tokenizer

    config = context.config
    if config.evaluation.guard.path is None:
        return None
    guard = config.model_copy(update={"evaluation": guard_of(config.evaluation)})
    path = Path(config.evaluation.guard.path).expanduser()
    try:
        questions = task_questions(path, guard, load_tokenizer(config.model))
    except StageError as error:
        cure = re.sub(r"\bevaluation\.", "evaluation.guard.", error.cure)
        raise StageError(error.what, where=error.where, cure=cure) from error
    return Asking(questions, guard, None, context.folder, context.say, name="guard")


def _candidates(context: Context) -> list[Candidate]:
    """Base, adapter if it is to be asked, and merged model."""
    model, merged, before = context.config.model, context.needs["merge"], context.config.compared_with
    digest, aside = merged.record.result["digest"], {"folder", "tokenizer", "license"}
    folder = str(merged.run_folder / merged.record.result["folder"])
    tuned = model.model_copy(update={"pretrained_model_name_or_path": folder, "revision": None, "folder": None})
    found = [Candidate("base", before, before.model_dump_json(exclude=aside)), Candidate("merged", tuned, digest)]
    if context.config.evaluation.adapter:
        started = model.model_dump_json(exclude=aside)
        found.insert(1, Candidate("adapter", model, f"{started} {digest}", _adapter(context)))
    return found


def _adapter(context: Context) -> Path:
    train = context.needs["train"]
    folder = train.run_folder / train.record.result["folder"]
    if not folder.is_dir():
        cure = "evaluation.adapter=false, or stage=train,merge,evaluate in one job"
        raise StageError("the adapter was made by another job and is not here", where=str(folder), cure=cure)
    return folder


def _questions(context: Context) -> list[Question]:
    from ftkit.models.loading import load_tokenizer

    config = context.config
    if path := task_file(config.evaluation, config.job.evaluation):
        return task_questions(path, config, load_tokenizer(config.model))
    folder, name = published_rows(context), context.needs["publish"].record.result["name"]
    return heldout_questions(folder / f"{name}.parquet", folder / TOKENS, config.evaluation.questions)


def _trained_on(context: Context, questions: Sequence[Question]) -> int:
    """How many questions of a file the model was trained on; says so."""
    folder, name = published_rows(context), context.needs["publish"].record.result["name"]
    known = trained_on(questions, folder / f"{name}.parquet", folder / TOKENS)
    if known:
        context.say(
            f"{known} of {in_words(len(questions), context.config.evaluation)} are training rows: {NOT_HELD_OUT}"
        )
    return known


def _print(compared: Comparison, evaluation: Evaluation) -> None:
    print_listing(_table(in_words(compared.questions, evaluation), compared, compared.shown))
    pair = _example(compared.pairs)
    for label, text in (
        ("question", pair.base.question),
        ("before", f"{pair.base.thinking} ⇒ {pair.base.output}"),
        ("after", f"{pair.tuned.thinking} ⇒ {pair.tuned.output}"),
    ):
        console().print(Text.assemble((f"{'':13}{set_cell_size(said(label), 10)}", "dim"), text), soft_wrap=True)


def _table(title: str, compared: Comparison, rows: Sequence[Row]) -> Table:
    unmerged = ["adapter"] if compared.adapter else []
    table = listing(*map(said, (title, "before", *unmerged, "after", "change, 95 % interval")))
    for row in rows:
        style = "bold" if row.change.excludes_zero else ""
        means = [f"{figure.mean:.2f}" for figure in (row.base, row.adapter, row.tuned) if figure]
        table.add_row(said(row.label), *means, Text(_change(row), style=style))
    return table


def _change(row: Row) -> str:
    """``+0.98  +0.87 to +1.00``."""
    mean, ends = row.change.mean, row.change.ends
    shown = f"{mean:+.2f}" if mean else "0.00"
    return f"{shown}  {ends[0]:+.2f} to {ends[1]:+.2f}" if ends and any(ends) else shown


def _example(pairs: Sequence[Pair]) -> Pair:
    """The first question that the tuned model gets right with Japanese thinking, or else the first."""
    return next((pair for pair in pairs if pair.tuned.right and pair.tuned.thinks_in_japanese), pairs[0])


def _write(path: Path, compared: Comparison, beside: Mapping[str, Comparison]) -> None:
    lines = list(_lines(compared))
    for name, comparison in beside.items():
        lines += [{name: True} | line for line in _lines(comparison)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _lines(compared: Comparison) -> Iterator[dict[str, Any]]:
    """A line for each answer: what was asked, and what each model made of it."""
    for place, pair in enumerate(compared.pairs):
        asked = {name: getattr(pair.base, name) for name in ("row", "sample", "question", "expected")}
        made = {"base": _shown(pair.base), "merged": _shown(pair.tuned)}
        if compared.adapter:
            made["adapter"] = _shown(compared.adapter.answers[place])
        yield asked | made


def _shown(answer: Answer) -> dict[str, object]:
    return {name: getattr(answer, name) for name in SHOWN}
