"""stage=prepare: rows to Harmony conversations and to tokens; every row is kept or refused with a reason.

python -m ftkit experiment=tiny stage=prepare
python -m ftkit stage=prepare dataset=jsonl dataset.path=rows.jsonl
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.data.conversations import Conversation, Refused, to_conversation
from ftkit.data.harmony import Renderer
from ftkit.data.readers import RawRow, local_file, read_rows
from ftkit.errors import StageError
from ftkit.files import sha256, written_aside
from ftkit.stages import Context, Made

TOKENS = "tokens.parquet"
REJECTED = "rejected.jsonl"
SHOWN_REASONS = 3


def outside_inputs(config: Config) -> dict[str, str]:
    """Digest of the rows' file; a hub data set is told apart by its name and revision alone."""
    path = local_file(config.dataset)
    return {"rows": sha256(path)} if path and path.is_file() else {}


def run(context: Context) -> Made:
    """Convert, split, tokenise, write.

    Raises:
        StageError: the source cannot be read, or no row of it can be used.
    """
    dataset = context.config.dataset
    kept, rejected = _convert(read_rows(dataset), context.config)
    if not kept:
        raise StageError(
            f"none of the {len(rejected)} rows can be used; the first was refused because {_first_reason(rejected)}",
            where=dataset.path,
            cure="dataset.columns.question=… dataset.columns.answer=…; an answer needs <think>…</think>",
        )
    for reason, count in Counter(r["reason"] for r in rejected).most_common(SHOWN_REASONS):
        context.say(f"refused {count}: {reason}")
    tokens = _tokenise(kept, context.config)
    files = _write(context.folder, dataset.asset_name, kept, tokens, rejected)
    counts = Counter(c.split for c in kept)
    result = {
        "rows": len(kept) + len(rejected),
        "train": counts["train"],
        "heldout": counts["heldout"],
        "rejected": len(rejected),
        "tokens": sum(len(row["input_ids"]) for row in tokens if row["split"] == "train"),
        "longest": max(len(row["input_ids"]) for row in tokens),
    }
    summary = (
        f"{result['rows']} rows: {counts['train']} to train on, {counts['heldout']} held out, {len(rejected)} refused; "
        f"{result['tokens']:,} tokens, the longest row {result['longest']}"
    )
    return Made(summary, files, result)


def _convert(rows: Iterable[RawRow], config: Config) -> tuple[list[Conversation], list[dict[str, Any]]]:
    kept: list[Conversation] = []
    rejected: list[dict[str, Any]] = []
    for raw in rows:
        try:
            kept.append(to_conversation(raw, config.dataset))
        except Refused as reason:
            rejected.append({"row": raw.number, "reason": str(reason), "values": raw.values})
    return kept, rejected


def _tokenise(conversations: list[Conversation], config: Config) -> list[dict[str, Any]]:
    from ftkit.training.model import load_tokenizer

    dataset = config.dataset
    renderer = Renderer(
        load_tokenizer(config.model), current_date=dataset.current_date, reasoning_effort=dataset.reasoning_effort
    )
    return [
        {
            "row": conversation.row,
            "split": conversation.split,
            "input_ids": row.input_ids,
            "labels": row.labels,
            "prompt_length": row.prompt_length,
        }
        for conversation in conversations
        for row in renderer.token_rows(conversation.messages)
    ]


def _write(
    folder: Path, name: str, kept: list[Conversation], tokens: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"row": c.row, "split": c.split, "messages": c.messages, **_renamed(c.tags)} for c in kept]
    files = {key: folder / key for key in (f"{name}.parquet", f"{name}.jsonl", TOKENS, REJECTED)}
    with written_aside(files[f"{name}.parquet"]) as aside:
        pq.write_table(pa.Table.from_pylist(_uniform(rows)), aside)
    with written_aside(files[f"{name}.jsonl"]) as aside:
        _write_jsonl(aside, rows)
    with written_aside(files[TOKENS]) as aside:
        pq.write_table(pa.Table.from_pylist(tokens, schema=token_schema()), aside)
    with written_aside(files[REJECTED]) as aside:
        _write_jsonl(aside, rejected)
    return list(files.values())


def token_schema() -> Any:
    """Arrow schema of the token rows."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    fields = {"row": pa.int64(), "split": pa.string(), "input_ids": ids, "labels": ids, "prompt_length": pa.int32()}
    return pa.schema(list(fields.items()))


def _renamed(tags: dict[str, str]) -> dict[str, str]:
    """The row's own columns beside ours; one that bears a name of ours is kept under ``source_<name>``."""
    return {f"source_{key}" if key in ("row", "split", "messages") else key: value for key, value in tags.items()}


def _uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every column in every row: Arrow takes its schema from the first."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _first_reason(rejected: list[dict[str, Any]]) -> str:
    return rejected[0]["reason"] if rejected else "there is no row"
