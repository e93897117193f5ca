"""stage=evaluate: put questions to the base and to the merged model; show what has changed, for better and for worse.

python -m ftkit experiment=tiny stage=evaluate
python -m ftkit experiment=tiny stage=evaluate evaluation.adapter=true
python -m ftkit experiment=tiny stage=evaluate evaluation.temperature=1.0 evaluation.samples=4
python -m ftkit stage=evaluate evaluation.lm_eval.tasks=[gsm8k] evaluation.lm_eval.python=lm-eval/bin/python
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ftkit.config.lm_eval import include_folder
from ftkit.config.schema import Config
from ftkit.console import console
from ftkit.errors import StageError
from ftkit.evaluation.asking import Asking
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.card import write_card
from ftkit.evaluation.comparison import Comparison, Pair, Row, write_comparison
from ftkit.evaluation.harness_figures import HarnessComparison, table_of
from ftkit.evaluation.measures import MEASURES, Answer
from ftkit.evaluation.questions import Question, heldout_questions, task_file, task_questions
from ftkit.evaluation.tasks import Tasks
from ftkit.files import sha256, tree_digest, written_aside
from ftkit.quiet import libraries_to
from ftkit.stages import Context, Made
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows

ANSWERS, PAGE = "answers.jsonl", "report.html"
LIBRARY_LOG = "library.log"
SHOWN = ("thinking", "output", *MEASURES, "seconds")


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of a file of questions, and of a folder with tasks for lm-eval."""
    evaluation = config.evaluation
    path, tasks = task_file(evaluation), include_folder(evaluation.lm_eval, evaluation.folder)
    found = {"task": sha256(path)} if path and path.is_file() else {}
    return found | ({"lm_eval_tasks": tree_digest(tasks)} if tasks and tasks.is_dir() else {})


def run(context: Context) -> Made:
    """Ask the models, write every answer and the page, print figures and one example.

    Raises:
        StageError: no row is held out, the file of questions cannot be used, or the adapter is not here.
    """
    config, merged = context.config, context.needs["merge"]
    context.folder.mkdir(parents=True, exist_ok=True)
    with libraries_to(context.folder / LIBRARY_LOG):
        compared, by_lm_eval = _compare(context)
    _print(compared, config)
    if by_lm_eval:
        console().print(table_of(by_lm_eval, config.evaluation.adapter))
        for text in by_lm_eval.cut_off_in_words:
            limit = config.evaluation.max_new_tokens
            context.say(f"{text} at {limit} tokens; for more of them evaluation.max_new_tokens={4 * limit}")
    with written_aside(context.folder / ANSWERS) as aside:
        _write(aside, compared)
    write_comparison(context.folder / PAGE, compared, config, by_lm_eval)
    result = {"task": config.evaluation.name, **compared.result()}
    if by_lm_eval:
        result["lm_eval"] = by_lm_eval.result()
    if merged.run_folder == context.run_folder:  # not where a job finds a model that an earlier one has made
        train, data = context.needs["train"].record, context.needs["publish"].record
        model = merged.run_folder / merged.record.result["folder"]
        write_card(model, config, trained=train, data=data, merged=merged.record.result, evaluated=result)
    shares = f"{result['base']['thinks_in_japanese']:.2f} → {result['merged']['thinks_in_japanese']:.2f}"
    summary = f"{_asked(compared, config)}: thinking in Japanese {shares}; {context.folder / PAGE}"
    return Made(summary, [context.folder / ANSWERS, context.folder / PAGE], result)


def _compare(context: Context) -> tuple[Comparison, HarnessComparison | None]:
    """Ask one model after the other, ftkit's own questions and lm-eval's tasks while its weights are loaded."""
    config, asked = context.config, {}
    candidates = _candidates(context)
    with Tasks(config, context.folder, context.say) if config.evaluation.lm_eval.tasks else nullcontext() as tasks:
        questions = _questions(context)
        tokens = None if config.evaluation.path else published_rows(context) / TOKENS
        asking = Asking(questions, config, tokens, context.folder, context.say)
        for candidate in candidates:
            asked[candidate.name] = asking.ask(candidate)
            if tasks:
                tasks.put_to(candidate)
            candidate.release()
    compared = Comparison(base=asked["base"], adapter=asked.get("adapter"), tuned=asked["merged"])
    return compared, tasks.compared() if tasks else None


def _candidates(context: Context) -> list[Candidate]:
    """Base, adapter if it is to be asked, and merged model."""
    model, merged = context.config.model, context.needs["merge"]
    base, digest = model.model_dump_json(exclude={"folder", "tokenizer", "license"}), merged.record.result["digest"]
    folder = str(merged.run_folder / merged.record.result["folder"])
    tuned = model.model_copy(update={"pretrained_model_name_or_path": folder, "revision": None, "folder": None})
    found = [Candidate("base", model, base), Candidate("merged", tuned, digest)]
    if context.config.evaluation.adapter:
        found.insert(1, Candidate("adapter", model, f"{base} {digest}", _adapter(context)))
    return found


def _adapter(context: Context) -> Path:
    train = context.needs["train"]
    folder = train.run_folder / train.record.result["folder"]
    if not folder.is_dir():
        cure = "evaluation.adapter=false, or stage=train,merge,evaluate in one job"
        raise StageError("the adapter was made by another job and is not here", where=str(folder), cure=cure)
    return folder


def _questions(context: Context) -> list[Question]:
    from ftkit.training.model import load_tokenizer

    config = context.config
    if path := task_file(config.evaluation):
        return task_questions(path, config, load_tokenizer(config.model))
    folder, name = published_rows(context), context.needs["publish"].record.result["name"]
    return heldout_questions(folder / f"{name}.parquet", folder / TOKENS, config.evaluation.questions)


def _asked(compared: Comparison, config: Config) -> str:
    question = "question" if compared.questions == 1 else "questions"
    of = f"held-out {question}" if config.evaluation.path is None else f"{question} of {config.evaluation.name}"
    return f"{compared.questions} {of}"


def _print(compared: Comparison, config: Config) -> None:
    table = Table(box=None, padding=(0, 3, 0, 13), header_style="dim")
    unmerged = ["adapter"] if compared.adapter else []
    for heading in (_asked(compared, config), "before", *unmerged, "after", "change, 95 % interval"):
        table.add_column(heading)
    for row in compared.shown:
        style = "" if row.change.low <= 0 <= row.change.high else "bold"
        means = [f"{figure.mean:.2f}" for figure in (row.base, row.adapter, row.tuned) if figure]
        table.add_row(row.label, *means, Text(_change(row), style=style))
    console().print(table)
    pair = _example(compared.pairs)
    for label, text in (
        ("question", pair.base.question),
        ("before", f"{pair.base.thinking} ⇒ {pair.base.output}"),
        ("after", f"{pair.tuned.thinking} ⇒ {pair.tuned.output}"),
    ):
        console().print(Text.assemble((f"{'':13}{label:<10}", "dim"), text), soft_wrap=True)


def _change(row: Row) -> str:
    """``+0.98  +0.93 to +1.00``; plain 0.00 where no answer has changed."""
    change = row.change
    if change.low == change.high == 0:
        return "0.00"
    return f"{change.mean:+.2f}  {change.low:+.2f} to {change.high:+.2f}"


def _example(pairs: Sequence[Pair]) -> Pair:
    """The first question that the tuned model gets right with Japanese thinking, or else the first."""
    return next((pair for pair in pairs if pair.tuned.right and pair.tuned.thinks_in_japanese), pairs[0])


def _write(path: Path, compared: Comparison) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for place, pair in enumerate(compared.pairs):
            asked = {name: getattr(pair.base, name) for name in ("row", "sample", "question", "expected")}
            made = {"base": _shown(pair.base), "merged": _shown(pair.tuned)}
            if compared.adapter:
                made["adapter"] = _shown(compared.adapter.answers[place])
            stream.write(json.dumps(asked | made, ensure_ascii=False) + "\n")


def _shown(answer: Answer) -> dict[str, object]:
    return {name: getattr(answer, name) for name in SHOWN}
