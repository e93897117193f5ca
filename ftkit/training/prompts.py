"""Questions from ``prepare``, with the answers that are right, for a training on the model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ftkit.chat.format import parser_of
from ftkit.config.methods import GrpoMethod
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.training.dataset import DataCounts, check_tokens, no_rows, overlength, read_rows


def prompt_rows(
    tokens: Path, config: Config, *, vocab_size: int, tokenizer: Any, split: str = "train"
) -> tuple[Dataset, DataCounts]:
    """Read a split's prompts; those that leave no room for the longest answer are left out, or stop the run.

    Args:
        tokens: parquet file of ``prepare``.
        vocab_size: of the model; a token outside of it is refused.
        tokenizer: of the model.
        split: ``train``, or ``heldout`` for questions to evaluate on.

    Returns:
        A dataset of ``prompt`` (token ids), ``question`` (the prompt as text), ``expected`` (the row's own answer) and
        ``row``, the source row's number; and what became of the rows. Trained rows are answers: as many as
        ``method.num_generations`` to each question. How many tokens they have is not known before.

    Raises:
        StageError: the file is missing, no question is left, or one has no answer that could be right.
    """
    assert isinstance(config.method, GrpoMethod)
    table = read_rows(tokens, split, "prompt_length")
    prompts = table["prompt_length"].to_numpy().astype(np.int64)
    lengths = prompts + config.method.max_completion_length
    too_long = lengths > config.sft.max_length
    if too_long.any() and config.dataset.overlength == "error":
        raise overlength(table, lengths, too_long, config, tokens)
    kept = table.filter(pa.array(~too_long))
    if kept.num_rows == 0:
        raise no_rows(table.num_rows, lengths, split, config, tokens)
    check_tokens(kept, "input_ids", tokens, vocab_size)
    parser, rows = parser_of(tokenizer), []
    for row in kept.select(["row", "input_ids", "prompt_length"]).to_pylist():
        prompt, answer = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]
        expected = parser.parse(answer, prompt).output
        if not expected and config.method.rewards.get("right"):
            raise StageError(
                f"row {row['row']} has no answer that one of the model's could be held against",
                where=str(tokens),
                cure="leave the row out, or '~method.rewards.right'",
            )
        rows.append({"prompt": prompt, "question": tokenizer.decode(prompt), "expected": expected, "row": row["row"]})
    return Dataset.from_list(rows), DataCounts(
        rows=table.num_rows,
        overlength=int(too_long.sum()),
        truncated=0,
        longest=int(lengths[~too_long].max()),
        trained=kept.num_rows * config.method.num_generations,
        tokens=int(prompts[~too_long].sum()),
        loss_tokens=0,
        fill=None,
    )
