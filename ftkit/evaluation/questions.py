"""Questions to put to a model, with their prompts as token ids: the held-out rows, or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.config.groups import Columns, Dataset, Evaluation
from ftkit.config.schema import Config
from ftkit.data.conversations import Conversation, Message, system_message
from ftkit.data.harmony import checked_harmony
from ftkit.data.readers import RawRow, read_chunks
from ftkit.errors import StageError


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
    """The first held-out rows, asked as training would have shown them.

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
    return [
        Question(
            row["row"],
            row["input_ids"][: row["prompt_length"]],
            conversations[row["row"]][-2]["content"],
            conversations[row["row"]][-1]["content"],
        )
        for row in list(last_turns.values())[:limit]
    ]


def task_file(evaluation: Evaluation) -> Path | None:
    """The file of questions and answers; None where the held-out rows are asked."""
    if evaluation.path is None:
        return None
    path = Path(evaluation.path).expanduser()
    return Path(evaluation.folder, path.name) if evaluation.folder else path


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
    harmony = checked_harmony(tokenizer, current_date=dataset.current_date)
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
    rows = harmony.token_rows(asked)
    prompts = [ids[:length].tolist() for ids, length in zip(rows.rows(), rows.prompt_length, strict=True)]
    return [Question(n, prompt, q, a) for prompt, (n, q, a) in zip(prompts, pairs, strict=True)]


def _pairs(path: Path, dataset: Dataset, task: Evaluation) -> Iterator[tuple[int, str, str]]:
    """Number, question and answer of each row."""
    columns = Columns(**dict.fromkeys(Columns.model_fields) | task.columns.model_dump())
    source = dataset.model_copy(update={"path": str(path), "columns": columns, "max_rows": task.questions})
    try:
        rows = [row for chunk in read_chunks(source, task.header) for row in chunk.rows()]
    except StageError as error:
        cure = error.cure.replace("dataset.", "evaluation.")
        raise StageError(error.what, where=error.where, cure=cure) from error
    if not rows:
        raise StageError("there is no question to ask", where=str(path), cure="evaluation.path=<your questions>")
    for row in rows:
        yield row.number, _text(row, task.columns.question), _text(row, task.columns.answer)


def _text(row: RawRow, column: str) -> str:
    value = (row.values or {}).get(column)
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not text:
        what = f"{row.reason} {row.detail}".strip() or f"{column} is {value!r}, not text"
        raise StageError(what, where=row.where, cure="mend or remove that row; evaluation.columns names the columns")
    return text
