"""The same questions without the line that asks for a reasoning language: what a model does when it is not told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftkit.chat.format import Renderer
from ftkit.chat.messages import EFFORTS, Conversation, without_language
from ftkit.config.schema import Config
from ftkit.data.prepared import conversations_of
from ftkit.errors import StageError
from ftkit.evaluation.questions import Question, renderer_for, task_questions


def task_without_line(path: Path, config: Config, tokenizer: Any) -> list[Question]:
    """As ``task_questions``, the system message without ``dataset.reasoning_language``."""
    dataset = config.dataset.model_copy(update={"reasoning_language": None})
    return task_questions(path, config.model_copy(update={"dataset": dataset}), tokenizer)


def heldout_without_line(questions: Sequence[Question], rows: Path, config: Config, tokenizer: Any) -> list[Question]:
    """Held-out questions with prompts that lack the line; one that never had it stays as it is.

    Args:
        questions: of ``heldout_questions``.
        rows: parquet file of conversations that ``prepare`` wrote.
        config: the whole configuration.
        tokenizer: of transformers.

    Raises:
        StageError: no question has the line, or the prompt of one is not what its conversation gives.
    """
    renderer, told = renderer_for(config, tokenizer), {question.row: question.prompt for question in questions}
    found: dict[int, list[int]] = {}
    left = [conversation for _, conversation in conversations_of(rows, config.dataset) if conversation.row in told]
    for effort in EFFORTS:  # a row may have asked for another than the setting: its prompt tells
        asked = [replace(conversation, reasoning_effort=effort) for conversation in left]
        same = {row for row, prompt in _last_prompts(renderer, asked).items() if prompt == told[row]}
        untold = [replace(c, messages=without_language(c.messages)) for c in asked if c.row in same]
        found |= _last_prompts(renderer, untold)
        left = [conversation for conversation in left if conversation.row not in same]
    cure = "evaluation.without_language_line=false"
    if left:
        raise StageError(
            f"row {left[0].row} gives another prompt than when it was prepared", where=str(rows), cure=cure
        )
    if all(found[row] == prompt for row, prompt in told.items()):
        raise StageError("no prompt has a line 'reasoning language: …' to leave out", where=str(rows), cure=cure)
    return [replace(question, prompt=found[question.row]) for question in questions]


def _last_prompts(renderer: Renderer, conversations: Iterable[Conversation]) -> dict[int, list[int]]:
    """Token ids before the last turn that carries loss, by the conversation's row."""
    given = list(conversations)
    rows = renderer.token_rows(given)
    of = zip(rows.conversations, rows.rows(), rows.prompt_length, strict=True)
    return {given[place].row: ids[:length].tolist() for place, ids, length in of}
