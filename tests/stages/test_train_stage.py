"""stage=train before it loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.files import tree_digest
from ftkit.pipeline.stage import Context, Found
from ftkit.records import Record
from ftkit.stages import train


def context(folder: Path, *arguments: str, digest: str = "") -> Context:
    """Of a training on rows of which none is held out, in ``rows``, where they had this digest."""
    where = {"path": str(folder / "rows"), "digest": digest}
    published = {"name": "rows", "version": "1", "tags": {"heldout": "0"}} | where
    figures: dict[str, Any] = {"settings": {}, "inputs": {}, "files": {}, "versions": {}, "seconds": 1.0}
    needs = {"publish": Found(Record("publish", "", result=published, finished="", **figures), folder)}
    return Context(resolve(["experiment=tiny", *arguments]), folder, folder / "train", "", needs, print, "train")


def test_that_nothing_is_held_out_is_said_before_the_training_and_not_after_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="evaluate would have nothing to ask") as error:
        train.run(context(tmp_path, "stage=train,merge,evaluate"))
    assert error.value.cure.startswith("dataset.heldout=0.")


def test_rows_that_are_not_those_that_were_published_are_not_trained_on(tmp_path: Path) -> None:
    """Guard: check_whole in published_rows. The size stays the same."""
    rows = tmp_path / "rows" / "tokens.parquet"
    rows.parent.mkdir()
    rows.write_text("mine")
    digest = tree_digest(rows.parent)
    rows.write_text("else")
    with pytest.raises(StageError, match="rows:1 is gone or was changed") as error:
        train.run(context(tmp_path, "stage=train", digest=digest))
    assert error.value.cure == "stage=publish,train force=true"


@pytest.mark.parametrize("arguments", [["stage=train"], ["stage=train,evaluate", "evaluation.path=q.jsonl"]])
def test_a_training_that_needs_no_held_out_rows_is_not_refused(arguments: list[str], in_empty_folder: Path) -> None:
    (in_empty_folder / "q.jsonl").write_text("{}\n")
    with pytest.raises(StageError) as error:
        train.run(context(in_empty_folder, *arguments))
    assert "held out" not in error.value.what
