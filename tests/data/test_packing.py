"""Packing keeps every row whole, fits the length, wastes little, and is the same every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.data import sample
from ftkit.data.conversations import Converter
from ftkit.data.packing import pack
from ftkit.data.readers import RawRow

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(LENGTHS)
def test_every_row_is_in_one_bin_and_every_bin_fits(lengths: list[int]) -> None:
    bins = pack(lengths, 64)
    assert sorted(row for documents in bins for row in documents) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in documents) <= 64 for documents in bins)


@given(LENGTHS)
def test_no_two_bins_would_fit_into_one(lengths: list[int]) -> None:
    fills = sorted(sum(lengths[row] for row in documents) for documents in pack(lengths, 64))
    assert len(fills) < 2 or fills[0] + fills[1] > 64


@given(LENGTHS)
def test_the_same_lengths_give_the_same_bins(lengths: list[int]) -> None:
    assert pack(lengths, 64) == pack(list(lengths), 64)


def test_rows_that_fill_bins_exactly_leave_no_room() -> None:
    assert [len(documents) for documents in pack([3, 5, 8, 4, 4, 1, 7], 8)] == [1, 2, 2, 2]


@pytest.mark.parametrize(("lengths", "named"), [([4, 9], "row 1 has 9"), ([0, 4], "row 0 has 0")])
def test_a_row_that_cannot_be_packed_is_named(lengths: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        pack(lengths, 8)


def test_rows_like_the_sample_s_fill_rows_of_4096_tokens_to_97_percent(tiny_harmony, dataset) -> None:
    settings = dataset("sample", "package:sample.jsonl")
    rows = [RawRow(i, "", row) for i, row in enumerate(sample.generate(2000))]
    lengths = tiny_harmony.token_rows([Converter(settings).conversation(row) for row in rows]).lengths.tolist()
    assert sum(lengths) / (len(pack(lengths, 4096)) * 4096) >= 0.97
