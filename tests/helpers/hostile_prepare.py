"""Hostile files put to ``prepare``: every row and column is accounted for, or there is one error with its cure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ftkit.chat.format
import ftkit.models.loading
from ftkit.config.dataset import Dataset
from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.errors import StageError
from helpers.hostile import write_file
from helpers.hostile_rows import hostile_rows, write_rows
from helpers.prepared import Prepared, prepare_as


@contextmanager
def one_tokenizer() -> Iterator[None]:
    """Within it the tokenizer is loaded, and its template checked, once."""
    tokenizer, renderer = cache(ftkit.models.loading.load_tokenizer), cache(ftkit.chat.format.renderer_of)
    with (
        patch("ftkit.models.loading.load_tokenizer", tokenizer),
        patch("ftkit.chat.format.renderer_of", renderer),
    ):
        yield


def outcome(seed: int, folder: Path, *, with_page: bool = False) -> Counter[str]:
    """Prepare the file of a seed: an odd one is a damaged file of some kind, an even one has odd values in its rows.

    Args:
        with_page: makes the report too, which takes longer than all the rest.

    Raises:
        AssertionError: a row or a column is unaccounted for, or an error has no cure.
    """
    option, rows = ("jsonl", None) if seed % 2 else hostile_rows(seed)
    path = write_file(folder, seed) if rows is None else write_rows(folder, rows)
    config = _settings(option)
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"path": str(path)})})
    try:
        if with_page:
            made = prepare_as(config, folder)
        else:
            with patch("ftkit.data.report.write_report", return_value=[]):
                made = prepare_as(config, folder)
    except StageError as error:
        assert error.what and error.cure, (seed, "an error without its cure", error)
        return Counter({"files refused": 1})
    _check_account(made)
    if rows is not None:
        _check_rows(made, rows, config.dataset)
    return Counter({"files prepared": 1, "rows": made.figures["rows"], "rows refused": made.figures["rejected"]})


@cache
def _settings(option: str) -> Config:
    return resolve(["experiment=tiny", f"dataset={option}", "dataset.path=package:sample.jsonl", "stage=prepare"])


def _check_account(made: Prepared) -> None:
    """Every row is trained on, held out or refused with a reason, and has a number of its own."""
    figures = made.figures
    kept, refused = [row["row"] for row in made.conversations], [row["row"] for row in made.rejected]
    assert figures["rows"] == figures["train"] + figures["heldout"] + figures["rejected"]
    assert len(kept) == figures["train"] + figures["heldout"] and len(refused) == figures["rejected"]
    assert len({*kept, *refused}) == figures["rows"] and all(row["reason"] and row["where"] for row in made.rejected)
    assert {row["row"] for row in made.tokens} == set(kept)
    assert all(len(row["input_ids"]) > row["prompt_length"] for row in made.tokens)


def _check_rows(made: Prepared, rows: list[dict[str, Any]], dataset: Dataset) -> None:
    """Each row is there, each column that holds something is used or listed, and questions are as they were."""
    used = {name.removesuffix("?") for _, name in dataset.columns if name}
    assert made.figures["rows"] == len(rows)
    nothing = (None, "", [], {})
    there = {key for row in rows for key, value in row.items() if value not in nothing and value == value}  # NaN is not
    assert there <= used | {*made.figures["not_used"]}
    for conversation in made.conversations:
        question = dataset.columns.question
        given = rows[conversation["row"] - 1].get(question) if question else None
        if isinstance(given, str):
            asked = [m["content"] for m in conversation["messages"] if m["role"] == "user"][-1]
            assert asked.startswith(given.replace("\r\n", "\n"))
