"""``stage=prepare`` in this process, without the runner around it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.pipeline.stage import Context
from ftkit.stages import prepare


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` made of some rows.

    Attributes:
        folder: where its files lie.
        said: what was printed while it ran, a line each.
        summary: its last line.
        figures: for the record.
    """

    folder: Path
    said: list[str]
    summary: str
    figures: dict[str, Any]

    @cached_property
    def conversations(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "reasoning_harmony.jsonl")

    @cached_property
    def rejected(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "rejected.jsonl")

    @cached_property
    def tokens(self) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / "tokens.parquet").to_pylist()

    def texts(self, tokenizer: Any) -> list[tuple[str, str]]:
        """Of each token row the text without loss and the text with it."""
        return [
            (
                tokenizer.decode(row["input_ids"][: row["prompt_length"]]),
                tokenizer.decode(row["input_ids"][row["prompt_length"] :]),
            )
            for row in self.tokens
        ]


def prepare_rows(rows: list[dict[str, Any]] | Path, folder: Path, option: str, *overrides: str) -> Prepared:
    """Prepare rows, or a file of them, with the tiny model's tokenizer; nothing is held out by default."""
    path = rows if isinstance(rows, Path) else folder / "rows.jsonl"
    if not isinstance(rows, Path):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    settings = ["experiment=tiny", "stage=prepare", f"dataset={option}", f"dataset.path={path}", "dataset.heldout=0"]
    return prepare_as(resolve([*settings, *overrides]), folder)


def prepare_as(config: Config, folder: Path) -> Prepared:
    """Prepare what a configuration says."""
    made_in, said = folder / "prepare", list[str]()
    made_in.mkdir(exist_ok=True)
    made = prepare.run(Context(config, folder, made_in, "", {}, said.append, "prepare"))
    return Prepared(made_in, said, made.summary, made.result)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
