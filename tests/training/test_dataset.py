"""No row vanishes, none is cut. The guards are in ``training_rows``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.small_model import save_token_rows, small_run
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import StageError
from ftkit.training.collator import Collator
from ftkit.training.dataset import rows_to_compare_on, training_rows

LENGTHS = [12, 40, 70, 9, 33, 64, 65, 20, 5, 31]  # two of the eight for training are longer than 64
OVERRIDES = {"sft.max_length": 64}


def rows_of(path: Path) -> dict[int, dict[str, list[int]]]:
    return {row["row"]: row for row in pq.read_table(path).to_pylist()}


@pytest.mark.parametrize("packing", ["true", "false"])
def test_every_row_is_trained_on_once_and_whole_or_counted(tmp_path: Path, packing: str) -> None:
    """Guards: pack, and the comparison with sft.max_length, in training_rows."""
    path = save_token_rows(tmp_path / "tokens.parquet", LENGTHS)
    dataset, counts = training_rows(path, small_run(tmp_path, f"sft.packing={packing}"), vocab_size=288)
    source, seen = rows_of(path), []
    for example in dataset:
        assert isinstance(example, dict)
        ids, labels = np.split(example["input_ids"], np.cumsum(example["seq_lengths"])[:-1]), example["labels"]
        labels = np.split(labels, np.cumsum(example["seq_lengths"])[:-1])
        assert len(example["input_ids"]) <= 64
        for row, document, targets in zip(example["rows"].tolist(), ids, labels, strict=True):
            seen.append(row)
            assert document.tolist() == source[row]["input_ids"]
            assert targets.tolist() == source[row]["labels"]
    assert sorted(seen) == [1, 2, 4, 6, 8, 9]
    assert (counts.rows, counts.overlength, counts.tokens) == (8, 2, 12 + 40 + 9 + 64 + 20 + 5)
    assert counts.loss_tokens == sum(label != -100 for row in seen for label in source[row]["labels"])
    assert counts.trained == len(dataset) == (3 if packing == "true" else 6)
    assert counts.fill == (150 / (3 * 64) if packing == "true" else None)


def test_rows_that_are_too_long_stop_the_run_if_asked_to(tmp_path: Path) -> None:
    path = save_token_rows(tmp_path / "tokens.parquet", LENGTHS)
    with pytest.raises(StageError, match=r"2 rows are longer .*: row 3 \(70 tokens\), 7 \(65 tokens\)") as caught:
        training_rows(path, small_run(tmp_path, "dataset.overlength=error"), vocab_size=288)
    assert "sft.max_length=70" in caught.value.cure


def test_the_first_token_of_a_document_carries_no_loss(tmp_path: Path) -> None:
    """It would be predicted from the document before it."""
    table = pa.table(
        {"row": [1, 2], "split": ["train"] * 2, "input_ids": [[9, 8, 7], [6, 5]], "labels": [[9, 8, 7], [6, 5]]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    dataset, counts = training_rows(tmp_path / "t.parquet", small_run(tmp_path, "sft.packing=true"), vocab_size=288)
    assert dataset[0]["labels"].tolist() == [-100, 8, 7, -100, 5] and counts.loss_tokens == 3


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"labels": [[-100, -100], [6, 5]]}, "row 1 has no token that carries loss"),
        ({"input_ids": [[9, 8], [300, 5]]}, "row 2 holds token 300, and the model has 288"),
        ({"input_ids": [[9, 8], [6, -5]]}, "row 2 holds token -5, and the model has 288"),
        ({"labels": [[9], [6, 5]]}, "differ in length"),
        ({"split": ["heldout"] * 2}, "no row to train on"),
        ({"input_ids": [[9] * 99, [8] * 99], "labels": [[9] * 99, [8] * 99]}, "all 2 training rows are longer"),
        ({"labels": None}, "not the token rows of prepare"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(tmp_path: Path, columns: dict[str, list], said: str) -> None:
    good = {"row": [1, 2], "split": ["train"] * 2, "input_ids": [[9, 8], [6, 5]], "labels": [[9, 8], [6, 5]]}
    pq.write_table(pa.table({k: v for k, v in (good | columns).items() if v}), tmp_path / "t.parquet")
    with pytest.raises(StageError, match=said):
        training_rows(tmp_path / "t.parquet", small_run(tmp_path), vocab_size=288)


def test_files_that_are_missing_or_no_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("no parquet")
    for name, said in (("none.parquet", "no token rows"), ("t.parquet", "not the token rows")):
        with pytest.raises(StageError, match=said):
            training_rows(tmp_path / name, small_run(tmp_path), vocab_size=288)


def test_models_are_compared_on_held_out_rows_or_else_on_training_rows(tmp_path: Path) -> None:
    path = save_token_rows(tmp_path / "t.parquet", [10, 10, 10, 10, 30])
    assert rows_to_compare_on(path, limit=4, longest=8) == ([rows_of(path)[5]["input_ids"][:8]], "held-out")
    path = save_token_rows(tmp_path / "u.parquet", [10, 11], split=["train", "train"])
    rows, kind = rows_to_compare_on(path, limit=4, longest=100)
    assert [len(row) for row in rows] == [10, 11] and kind == "training"


def test_without_any_row_there_is_nothing_to_compare_models_on(tmp_path: Path) -> None:
    path = save_token_rows(tmp_path / "t.parquet", [10], split=["other"])
    with pytest.raises(StageError, match="no row to compare the models on") as caught:
        rows_to_compare_on(path, limit=4, longest=8)
    assert caught.value.cure == "stage=prepare with more rows"


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_a_batch_holds_every_document_and_padding_stays_apart(rows: list[list[int]], packed: bool) -> None:
    rows = rows if packed else [[sum(row)] for row in rows]
    examples = [
        {"input_ids": np.arange(1, sum(row) + 1), "labels": np.arange(1, sum(row) + 1), "seq_lengths": row, "rows": [i]}
        for i, row in enumerate(rows)
    ]
    batch = Collator(pad_token_id=0, packed=packed)(examples)
    longest = max(map(sum, rows))
    assert batch["tokens"] == sum(map(sum, rows)) and batch["rows"] == list(range(len(rows)))
    for i, row in enumerate(rows):
        padding = longest - sum(row)
        assert batch["input_ids"][i].tolist() == [*range(1, sum(row) + 1), *[0] * padding]
        assert batch["labels"][i].tolist() == [*range(1, sum(row) + 1), *[-100] * padding]
        if packed:
            assert batch["position_ids"][i].tolist() == [p for size in [*row, padding] for p in range(size)]
        else:
            assert batch["attention_mask"][i].tolist() == [1] * sum(row) + [0] * padding


def test_batches_of_one_length_for_kernels_that_are_compiled_for_it() -> None:
    example = {"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [2], "rows": [1]}
    assert Collator(pad_token_id=0, packed=True, pad_to=16)([example])["input_ids"].shape == (1, 16)
