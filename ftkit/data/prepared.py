"""The conversations that ``prepare`` wrote, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ftkit.chat.messages import Conversation
from ftkit.config.dataset import Dataset
from ftkit.data.conversations import configured
from ftkit.data.parts import TOOLS


def conversations_of(rows: Path, dataset: Dataset) -> Iterator[tuple[str, Conversation]]:
    """Each row's split and conversation, as ``prepare`` had it.

    Where a row's system message asked for a reasoning effort of its own, ``dataset``'s stands in its place.

    Args:
        rows: parquet file of conversations that ``prepare`` wrote.
        dataset: the settings that they were made by.
    """
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(rows).iter_batches():
        for row in batch.to_pylist():
            number, split, messages, tools = (row.pop(name, None) for name in ("row", "split", "messages", TOOLS))
            tags = {name: value for name, value in row.items() if isinstance(value, str)}
            effort = tags.get(configured(dataset.columns).get("reasoning_effort", "")) or dataset.reasoning_effort
            plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
            yield split, Conversation(number, plain, effort, tags, json.loads(tools) if tools else [])
