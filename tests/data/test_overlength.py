"""Rows that are too long lose the end of their thinking, and nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.chat.harmony_render import labels_of
from ftkit.chat.messages import Conversation
from ftkit.config.resolve import resolve
from ftkit.data.overlength import WITHIN_CHARACTERS, cut_thinking
from ftkit.training.dataset import training_rows


def table(harmony, thoughts: list[str | None]) -> pa.Table:
    """Token rows as ``prepare`` writes them."""
    answers = [{"role": "assistant", "content": "答え"} | ({"thinking": t} if t else {}) for t in thoughts]
    chats = [[{"role": "user", "content": "問い"}, answer] for answer in answers]
    rows = harmony.token_rows([Conversation(i, chat, "low", {}) for i, chat in enumerate(chats, start=1)])
    labels = labels_of(rows.input_ids, rows.starts, rows.prompt_length)
    columns = {
        "row": rows.conversations + 1,
        "split": ["train"] * len(rows),
        "input_ids": pa.ListArray.from_arrays(pa.array(rows.starts.astype(np.int32)), pa.array(rows.input_ids)),
        "labels": pa.ListArray.from_arrays(pa.array(rows.starts.astype(np.int32)), pa.array(labels)),
        "thinking_start": rows.thinking[:, 0],
        "thinking_end": rows.thinking[:, 1],
    }
    return pa.table(columns).replace_schema_metadata({WITHIN_CHARACTERS: str(harmony.within_characters)})


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.none() | st.text("あ🤖漢a ", min_size=1, max_size=120), max_size=5), st.integers(60, 160))
def test_only_the_end_of_the_thinking_goes_and_no_character_is_split(
    tiny_harmony, tiny, thoughts: list[str | None], max_length: int
) -> None:
    before = table(tiny_harmony, thoughts)
    after, cut = cut_thinking(before, max_length)
    for old, new, was_cut in zip(before.to_pylist(), after.to_pylist(), cut, strict=True):
        without_thinking = len(old["input_ids"]) - old["thinking_end"] + old["thinking_start"]
        if not was_cut:
            assert new == old
            fits = len(old["input_ids"]) <= max_length
            assert fits or without_thinking + 4 > max_length, "not even a character of four bytes could stay"
            continue
        kept = len(new["input_ids"]) - (len(old["input_ids"]) - old["thinking_end"])
        assert old["thinking_start"] < kept and len(new["input_ids"]) <= max_length < len(old["input_ids"])
        for name in ("input_ids", "labels"):
            assert new[name] == old[name][:kept] + old[name][old["thinking_end"] :]
        assert "\ufffd" not in tiny.decode(new["input_ids"])


def test_training_cuts_if_asked_to_and_says_how_many(tmp_path, tiny_harmony) -> None:
    rows = table(tiny_harmony, ["短い。", "とても長い考え。" * 40, None])
    pq.write_table(rows, tmp_path / "tokens.parquet")
    longest = max(len(row) for row in rows["input_ids"].to_pylist())
    for policy, left_out, cut in (("truncate-thinking", 0, 1), ("drop", 1, 0)):
        config = resolve(["experiment=tiny", "stage=plan", f"dataset.overlength={policy}", "sft.max_length=100"])
        dataset, counts = training_rows(tmp_path / "tokens.parquet", config, vocab_size=2048)
        assert (counts.rows, counts.overlength, counts.truncated) == (3, left_out, cut)
        assert max(len(row["input_ids"]) for row in dataset) <= 100 < longest


def test_files_made_before_there_were_spans_are_told_from_others(tmp_path, tiny_harmony) -> None:
    from ftkit.errors import StageError

    pq.write_table(table(tiny_harmony, ["考え"]).drop(["thinking_end"]), tmp_path / "tokens.parquet")
    config = resolve(["experiment=tiny", "stage=plan", "dataset.overlength=truncate-thinking"])
    with pytest.raises(StageError, match="not the token rows of prepare"):
        training_rows(tmp_path / "tokens.parquet", config, vocab_size=2048)
