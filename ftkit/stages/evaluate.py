"""stage=evaluate: put the held-out questions to the base and to the merged model; print what has changed.

python -m ftkit experiment=tiny stage=evaluate
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.table import Table
from rich.text import Text

from ftkit.config.schema import Config, Model
from ftkit.console import console
from ftkit.errors import StageError
from ftkit.evaluation.generation import complete
from ftkit.evaluation.measures import MEASURES, Answer, Figure, differences, figures
from ftkit.files import written_aside
from ftkit.quiet import libraries_to
from ftkit.serving.endpoint.harmony import Harmony
from ftkit.stages import Context, Made
from ftkit.stages.prepare import TOKENS
from ftkit.stages.publish import published_rows

ANSWERS = "answers.jsonl"
LIBRARY_LOG = "library.log"
ROWS = (
    ("thinks in Japanese", "thinks_in_japanese"),
    ("parses as Harmony with a final answer", "parses"),
    ("ends by itself", "finished"),
    ("repeats itself in a loop", "loops"),
    ("right answer, word for word", "right"),
    ("right number", "right_number"),
    ("tokens of an answer", "tokens"),
)


@dataclass(frozen=True)
class Question:
    """A held-out row: its prompt as token ids, its texts."""

    row: int
    prompt: list[int]
    question: str
    expected: str


def run(context: Context) -> Made:
    """Ask both models, write every answer, print shares and one example.

    Raises:
        StageError: no row is held out.
    """
    config, published = context.config, context.needs["publish"].record.result
    questions = _questions(published_rows(context), published["name"], config.evaluate.questions)
    if not questions:
        raise StageError("no row is held out, so there is nothing to ask", cure="dataset.heldout=0.1 stage=prepare,…")
    merged = context.needs["merge"]
    tuned = config.model.model_copy(
        update={
            "pretrained_model_name_or_path": str(merged.run_folder / merged.record.result["folder"]),
            "revision": None,
            "folder": None,
        }
    )
    context.folder.mkdir(parents=True, exist_ok=True)
    with libraries_to(context.folder / LIBRARY_LOG):
        before = _ask(config, config.model, questions)
        after = _ask(config, tuned, questions)
    measured = {"base": figures(before), "merged": figures(after), "difference": differences(before, after)}
    _print(measured, before, after)
    with written_aside(context.folder / ANSWERS) as aside:
        _write(aside, before, after)
    means = {of: {name: figure.mean for name, figure in found.items()} for of, found in measured.items()}
    intervals = {
        of: {name: [figure.low, figure.high] for name, figure in found.items()} for of, found in measured.items()
    }
    shares = f"{means['base']['thinks_in_japanese']:.2f} → {means['merged']['thinks_in_japanese']:.2f}"
    summary = f"{len(questions)} held-out questions: thinking in Japanese {shares}; all in {context.folder / ANSWERS}"
    return Made(summary, [context.folder / ANSWERS], {**means, "intervals": intervals, "questions": len(questions)})


def _questions(folder: Path, name: str, limit: int) -> list[Question]:
    import pyarrow.parquet as pq

    conversations = {row["row"]: row["messages"] for row in pq.read_table(folder / f"{name}.parquet").to_pylist()}
    tokens = pq.read_table(folder / TOKENS, filters=[("split", "=", "heldout")]).to_pylist()
    last_turns = {row["row"]: row for row in tokens if row["row"] in conversations}
    return [
        Question(
            row["row"],
            row["input_ids"][: row["prompt_length"]],
            conversations[row["row"]][-2]["content"],
            conversations[row["row"]][-1]["content"],
        )
        for row in list(last_turns.values())[:limit]
    ]


def _ask(config: Config, model: Model, questions: Sequence[Question]) -> list[Answer]:
    from ftkit.training.model import load_base, load_tokenizer

    tokenizer = load_tokenizer(model)
    harmony = Harmony(tokenizer)
    loaded = load_base(model, device=_device()).eval()
    settings = config.evaluate
    completions = complete(
        loaded,
        [question.prompt for question in questions],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        stop_ids=harmony.stop_ids,
        pad_id=cast(int, tokenizer.pad_token_id),
    )
    del loaded
    gc.collect()
    return [_answer(harmony, q, ids) for q, ids in zip(questions, completions, strict=True)]


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _answer(harmony: Harmony, question: Question, ids: list[int]) -> Answer:
    parsed = harmony.parse(ids)
    return Answer(
        row=question.row,
        question=question.question,
        expected=question.expected,
        thinking=parsed.thinking,
        output=parsed.output,
        parses=parsed.well_formed and bool(parsed.output),
        finished=parsed.ended,
        tokens=len(ids),
    )


def _print(measured: Mapping[str, Mapping[str, Figure]], before: Sequence[Answer], after: Sequence[Answer]) -> None:
    table = Table(box=None, padding=(0, 3, 0, 13), header_style="dim")
    for heading in (f"{len(before)} held-out questions", "before", "after", "change, 95 % interval"):
        table.add_column(heading)
    for label, name in ROWS:
        old, new, change = (measured[of][name] for of in ("base", "merged", "difference"))
        sure = change.low > 0 or change.high < 0
        table.add_row(label, f"{old.mean:.2f}", f"{new.mean:.2f}", Text(_change(change), style="bold" if sure else ""))
    console().print(table)
    old, new = _example(before, after)
    for label, text in (
        ("question", old.question),
        ("before", f"{old.thinking} ⇒ {old.output}"),
        ("after", f"{new.thinking} ⇒ {new.output}"),
    ):
        console().print(Text.assemble((f"{'':13}{label:<10}", "dim"), text), soft_wrap=True)


def _change(figure: Figure) -> str:
    """``+0.98  +0.93 to +1.00``; plain 0.00 where no answer has changed."""
    if figure.low == figure.high == 0:
        return "0.00"
    return f"{figure.mean:+.2f}  {figure.low:+.2f} to {figure.high:+.2f}"


def _example(before: Sequence[Answer], after: Sequence[Answer]) -> tuple[Answer, Answer]:
    """The first question that the tuned model gets right with Japanese thinking, or else the first."""
    pairs = list(zip(before, after, strict=True))
    return next((pair for pair in pairs if pair[1].right and pair[1].thinks_in_japanese), pairs[0])


def _write(path: Path, before: Sequence[Answer], after: Sequence[Answer]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for old, new in zip(before, after, strict=True):
            row = {"row": old.row, "question": old.question, "expected": old.expected}
            made = {key: {k: getattr(a, k) for k in SHOWN} for key, a in (("base", old), ("merged", new))}
            stream.write(json.dumps(row | made, ensure_ascii=False) + "\n")


SHOWN = ("thinking", "output", *MEASURES)
