"""stage=prepare: rows to Harmony conversations and to tokens; every row is kept or refused with a reason.

python -m ftkit experiment=tiny stage=prepare
python -m ftkit stage=prepare dataset=jsonl dataset.path=rows.jsonl
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.data_files import data_files
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.files import sha256
from ftkit.stages import Context, Made

if TYPE_CHECKING:
    from ftkit.data.preparation import Part

TOKENS = "tokens.parquet"
REJECTED = "rejected.jsonl"
REPORT = "report.html"
CHARTS = "report.png"
SHOWN_REASONS = 3


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of the rows' files and of a local tokenizer; what lies on the hub is known by name and revision alone."""
    from ftkit.assets import asset_path

    rows = _digest(data_files(config.dataset.path) or [])
    model = Path(asset_path(config.model.tokenizer or config.model.pretrained_model_name_or_path))
    tokenizer = _digest(p for p in sorted(model.glob("*")) if p.name.startswith(("tokenizer", "chat_template")))
    return {name: digest for name, digest in (("rows", rows), ("tokenizer", tokenizer)) if digest}


def _digest(paths: Iterable[Path]) -> str:
    """One digest of some files: of one file its own."""
    digests = [f"{sha256(path)} {path.name}" for path in paths if path.is_file()]
    if len(digests) < 2:
        return "".join(digests)[:64]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def run(context: Context) -> Made:
    """Convert, tokenise, split, write, report.

    Raises:
        StageError: the source cannot be read, or no row of it can be used.
    """
    from ftkit.data.assembly import assemble
    from ftkit.data.harmony import checked_harmony
    from ftkit.data.preparation import Work, prepare
    from ftkit.data.readers import read_chunks
    from ftkit.data.report import write_report
    from ftkit.data.splits import sides
    from ftkit.data.statistics import Statistics
    from ftkit.training.model import load_tokenizer

    dataset, folder, name = context.config.dataset, context.folder, context.config.dataset.asset_name
    tokenizer = load_tokenizer(context.config.model)
    harmony = checked_harmony(tokenizer, current_date=dataset.current_date)
    scratch = folder / ".parts"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        work = Work(dataset, harmony, scratch)
        parts = list(prepare(read_chunks(dataset), work, dataset.num_proc))
        if not any(len(part.rows) for part in parts):
            raise _nothing_usable(parts, dataset.path)
        split = sides([p.keys for p in parts], heldout=dataset.heldout, likeness=dataset.near_duplicates)
        files = [folder / file for file in (f"{name}.parquet", f"{name}.jsonl", TOKENS, REJECTED)]
        assemble(parts, split.heldout, harmony.within_characters, files)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    statistics = Statistics.of(parts, split)
    for reason, count in statistics.refused.most_common(SHOWN_REASONS):
        context.say(f"refused {count:,}: {reason}")
    files += write_report(folder / REPORT, folder / CHARTS, statistics, context.config, tokenizer, folder / TOKENS)
    return Made(statistics.summary(), files, statistics.figures())


def _nothing_usable(parts: Sequence[Part], path: str) -> StageError:
    refused = [line for part in parts for line in part.rejected.read_text(encoding="utf-8").splitlines()[:1]]
    count = sum(sum(part.refused.values()) for part in parts)
    reason = json.loads(refused[0])["reason"] if refused else "there is no row"
    return StageError(
        f"none of the {count:,} rows can be used; the first was refused because {reason}",
        where=path,
        cure="dataset.columns.question=… dataset.columns.answer=…; an answer needs <think>…</think>",
    )
