"""Questions to put to a model, with their prompts as token ids: the held-out rows, or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.chat.format import Renderer, renderer_of
from ftkit.chat.messages import Conversation, Message, call_in_words, calls_of, is_trained, system_message
from ftkit.config.dataset import Columns, Dataset
from ftkit.config.groups import Evaluation, Guard
from ftkit.config.schema import Config
from ftkit.data.parts import SOURCE
from ftkit.data.readers import RawRow, read_chunks
from ftkit.data.refused import unix_lines
from ftkit.data.splits import normal
from ftkit.errors import StageError
from ftkit.evaluation.choices import place_of, shuffled, with_choices
from ftkit.families import family_of

HELD_OUT = "held-out"
"""``evaluation.name`` of the default option, which asks the held-out rows."""


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        row: number of the source row.
        prompt: token ids, up to where the assistant takes over.
        question: the user's message.
        expected: the answer that is right.
    """

    row: int
    prompt: list[int]
    question: str
    expected: str


def heldout_questions(rows: Path, tokens: Path, limit: int) -> list[Question]:
    """The first held-out rows, of several sources some of each, asked as training would have shown them.

    Args:
        rows: parquet file of conversations that ``prepare`` wrote.
        tokens: its parquet file of token rows.
        limit: questions at the most.

    Raises:
        StageError: no row is held out.
    """
    import pyarrow.parquet as pq

    conversations = {row["row"]: row["messages"] for row in pq.read_table(rows).to_pylist()}
    held_out = pq.read_table(tokens, filters=[("split", "=", "heldout")]).to_pylist()
    last_turns = {row["row"]: row for row in held_out if row["row"] in conversations}
    if not last_turns:
        raise StageError("no row is held out, so there is nothing to ask", cure="dataset.heldout=0.1 stage=prepare,…")
    asked = list(last_turns.values())
    if len(asked) > limit and SOURCE in held_out[0]:  # of each source its share
        asked = [asked[i * len(asked) // limit] for i in range(limit)]
    return [
        Question(row["row"], row["input_ids"][: row["prompt_length"]], *_last_turn(conversations[row["row"]]))
        for row in asked[:limit]
    ]


def _last_turn(messages: Sequence[Message]) -> tuple[str, str]:
    """What stands before the last turn that carries loss, and that turn: its answer, or its calls in words."""
    last = max(i for i, message in enumerate(messages) if is_trained(message))
    calls = [call_in_words(**call["function"]) for call in calls_of(messages[last])]
    return messages[last - 1]["content"], "\n".join(calls) or messages[last]["content"]


def name_of(evaluation: Evaluation) -> str:
    """What the questions are called: a file of questions by its own name, where the option gives it no other."""
    if evaluation.path is None or evaluation.name != HELD_OUT:
        return evaluation.name
    return Path(evaluation.path).name


def guard_of(evaluation: Evaluation) -> Evaluation:
    """The settings by which the questions of ``evaluation.guard`` are asked: as the others, one answer each."""
    guard = evaluation.guard
    own = {name: getattr(guard, name) for name in Guard.model_fields if name in Evaluation.model_fields}
    one = {"samples": 1, "pass_at": [], "temperature": 0.0}
    return evaluation.model_copy(update={"name": Path(guard.path or "").name} | own | one)


def in_words(count: int, evaluation: Evaluation) -> str:
    """``43 held-out questions``, ``250 questions of mgsm-ja``, ``30 questions of rows.jsonl``."""
    if evaluation.path is None:
        return "1 held-out question" if count == 1 else f"{count:,} held-out questions"
    of = name_of(evaluation)
    return f"1 question of {of}" if count == 1 else f"{count:,} questions of {of}"


def trained_on(questions: Sequence[Question], rows: Path, tokens: Path) -> int:
    """How many of some questions are user turns of training rows, width and white space aside.

    Args:
        questions: that are asked.
        rows: parquet file of conversations that ``prepare`` wrote.
        tokens: its parquet file of token rows.
    """
    import pyarrow.parquet as pq
    from pyarrow.compute import equal  # pyright: ignore[reportAttributeAccessIssue]  (made when it is imported)

    splits = pq.read_table(tokens, columns=["row", "split"])
    training = set(splits.filter(equal(splits["split"], "train"))["row"].to_pylist())
    asked, found = {normal(question.question) for question in questions}, set[str]()
    for batch in pq.ParquetFile(rows).iter_batches(columns=["row", "messages"]):
        for row in batch.to_pylist():
            if row["row"] in training:
                turns = (turn["content"] for turn in row["messages"] if turn["role"] == "user")
                found.update(asked.intersection(normal(text) for text in turns if text))
    return sum(normal(question.question) in found for question in questions)


def task_file(evaluation: Evaluation, mounted: str | None) -> Path | None:
    """The file of questions and answers; None where the held-out rows are asked.

    Args:
        evaluation: the keys.
        mounted: ``job.evaluation``: the folder that holds it inside a job.
    """
    if evaluation.path is None:
        return None
    path = Path(evaluation.path).expanduser()
    return Path(mounted, path.name) if mounted else path


def task_questions(path: Path, config: Config, tokenizer: Any) -> list[Question]:
    """The questions of a file, asked with the system message, date and reasoning effort of the training.

    Args:
        path: of ``task_file``.
        config: the whole configuration.
        tokenizer: of transformers.

    Raises:
        StageError: the file cannot be read, lacks a column, or a row of it lacks a question or an answer.
    """
    dataset, task = config.dataset, config.evaluation
    pairs = list(_pairs(path, dataset, task))
    before: list[Message] = [{"role": "system", "content": text}] if (text := system_message(dataset)) else []
    asked = [
        Conversation(
            number,
            [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            dataset.reasoning_effort,
            {},
        )
        for number, question, answer in pairs
    ]
    rows = renderer_for(config, tokenizer).token_rows(asked)
    prompts = [ids[:length].tolist() for ids, length in zip(rows.rows(), rows.prompt_length, strict=True)]
    return [Question(n, prompt, q, a) for prompt, (n, q, a) in zip(prompts, pairs, strict=True)]


def renderer_for(config: Config, tokenizer: Any) -> Renderer:
    """What writes prompts as the training has seen them."""
    family = family_of(config.model.architecture.model_type)
    return renderer_of(tokenizer, current_date=config.dataset.current_date, must_be=family.chat)


def _pairs(path: Path, dataset: Dataset, task: Evaluation) -> Iterator[tuple[int, str, str]]:
    """Number, question and answer of each row."""
    columns = Columns(**dict.fromkeys(Columns.model_fields) | task.columns.model_dump())
    first = task.questions + bool(task.header)  # a header may stand there all the same
    changed = {"path": str(path), "columns": columns, "max_rows": first}
    training_rows_alone = {"split": "train", "subset": None, "revision": None, "validation": None, "encoding": None}
    source = dataset.model_copy(update=changed | training_rows_alone)
    try:
        rows = [row for chunk in read_chunks(source, task.header) for row in chunk.rows()]
    except StageError as error:
        unknown = "dataset.encoding" in error.cure  # evaluation has no such key
        cure = "save the file as UTF-8" if unknown else error.cure.replace("dataset.", "evaluation.")
        raise StageError(error.what, where=error.where, cure=cure) from error
    if task.header and rows and _is_header(rows[0]):
        del rows[0]
    if not rows:
        raise StageError("there is no question to ask", where=str(path), cure="evaluation.path=<your questions>")
    for row in rows[: task.questions]:
        question, answer = _text(row, task.columns.question), _text(row, task.columns.answer).strip()
        if task.choices:
            question, answer = _chosen(row, question, answer, task)
        yield row.number, question + (f"\n\n{task.instruction}" if task.instruction else ""), answer


def _is_header(row: RawRow) -> bool:
    return row.values is not None and all(
        str(value).strip().casefold() == name.casefold() for name, value in row.values.items()
    )


def _chosen(row: RawRow, question: str, answer: str, task: Evaluation) -> tuple[str, str]:
    """The question with its choices, and the number of the right one."""
    names = task.choices or []
    choices = [_text(row, name).strip() for name in names]
    if task.columns.answer in names:
        order = shuffled(len(names), question, task.seed)
        choices = [choices[place] for place in order]
        right = order.index(names.index(task.columns.answer))
    elif (found := place_of(answer, choices)) is not None:
        right = found
    else:
        raise StageError(
            f"{task.columns.answer} is {answer!r}, which is none of the {len(names)} choices",
            where=row.where,
            cure="a letter from A, a number from 0, or the text of the right choice; evaluation.choices names them",
        )
    return with_choices(question, choices), str(right + 1)


def _text(row: RawRow, column: str) -> str:
    value = (row.values or {}).get(column)
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not text.strip():
        what = f"{row.reason} {row.detail}".strip() or f"{column} is {value!r}, not text"
        raise StageError(
            what, where=row.where, cure="mend or remove that row; evaluation.columns and .choices name the columns"
        )
    return unix_lines(text)
