"""Damaged files of every kind: each gives rows and refusals with their numbers, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hostile import write_file
from helpers.hostile_prepare import one_tokenizer, outcome

from ftkit.data.readers import read_chunks
from ftkit.errors import StageError


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_a_damaged_file_gives_rows_and_refusals_or_one_error(tmp_path: Path, dataset, start: int):
    (tmp_path / "rows.jsonl").write_text("{}")
    settings = dataset("jsonl", tmp_path / "rows.jsonl")
    for seed in range(start, start + 100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = write_file(folder, seed)
        try:
            rows = [
                row for chunk in read_chunks(settings.model_copy(update={"path": str(path)})) for row in chunk.rows()
            ]
        except StageError as error:
            assert error.what and error.where and error.cure, seed
            continue
        numbers = [row.number for row in rows]
        assert numbers == sorted(set(numbers)), (seed, "each row has a number of its own")
        assert all(row.reason for row in rows if row.values is None), seed


def test_every_row_and_column_of_hostile_files_is_accounted_for(tmp_path: Path):
    with one_tokenizer():
        for seed in range(60):
            folder = tmp_path / str(seed)
            folder.mkdir()
            outcome(seed, folder)
