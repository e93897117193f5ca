"""``outputs/index.html``: all runs with their pages, curves, sizes and main figures. It is read from records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ftkit import records
from ftkit.errors import StageError
from ftkit.files import size_of, whole_lines
from ftkit.html import INDEX, percent, write_page
from ftkit.records import Record
from ftkit.reports.runs import run_folders

PAGES = {
    "data": "prepare/report.html",
    "evaluation": "evaluate/report.html",
    "generated rows": "generate/report.html",
    "loss curve": "train/loss.png",
}
REPORT = "_report/report.html"
STAGES = ("prepare", "publish", "train", "merge", "evaluate", "register", "deploy")
"""Stages that leave a record."""
WIDTH, HEIGHT, POINTS = 300, 56, 150
"""Of a curve."""


@dataclass(frozen=True)
class Listed:
    """A run on the page.

    Attributes:
        name: of the run.
        stage: the last that ended well; empty for none.
        finished: when, UTC.
        failure: why a later one ended without a record.
        figures: what came out, in words.
        pages: addresses from the start page.
        curve: points of the training loss for an SVG of 300 × 56.
        bytes: that it takes.
    """

    name: str
    stage: str
    finished: str
    failure: str
    figures: Mapping[str, str]
    pages: Mapping[str, str]
    curve: str
    bytes: int


def write_index(outputs: Path) -> Path:
    """Write the page.

    Raises:
        StageError: it cannot be written.
    """
    runs = sorted((_listed(folder) for folder in run_folders(outputs).values()), key=lambda run: run.finished)
    report = REPORT if (outputs / REPORT).is_file() else ""
    write_page(
        outputs / INDEX, "reports", "index.html.jinja", home="", outputs=str(outputs), runs=runs[::-1], report=report
    )
    return outputs / INDEX


def _listed(folder: Path) -> Listed:
    found = {stage: record for stage in STAGES if (record := _record(folder, stage))}
    last = max(found.values(), key=lambda record: record.finished, default=None)
    failures = [f"{s}: {why.what}" for s in STAGES if s not in found and (why := records.failure(folder, s))]
    return Listed(
        name=folder.name,
        stage=last.stage if last else "",
        finished=last.finished[:16].replace("T", " ") if last else "",
        failure=failures[0] if failures else "",
        figures=_figures(found),
        pages={name: quote(f"{folder.name}/{path}") for name, path in PAGES.items() if (folder / path).is_file()},
        curve=curve([line["loss"] for line in whole_lines(folder / "train" / "metrics.jsonl") if _is_loss(line)]),
        bytes=size_of([folder]),
    )


def _record(folder: Path, stage: str) -> Record | None:
    with suppress(StageError):
        return records.read(folder, stage)
    return None


def _figures(found: Mapping[str, Record]) -> dict[str, str]:
    """What came out, of records that may be another version's."""
    figures: dict[str, str] = {}
    with suppress(KeyError, TypeError, ValueError):
        prepared = found["prepare"].result
        figures["rows, tokens"] = f"{prepared['train']:,}, {prepared['tokens']:,}"
    with suppress(KeyError, TypeError, ValueError):
        trained = found["train"].result
        figures["last loss"] = f"{trained['last_loss']:.4f}"
        figures["held-out loss"] = f"{trained['eval_loss']:.4f}"
    with suppress(KeyError, TypeError, ValueError):
        base, tuned = found["evaluate"].result["base"], found["evaluate"].result["merged"]
        for name, key in (("thinks in Japanese", "thinks_in_japanese"), ("right answers", "right")):
            figures[name] = f"{percent(base[key])} → {percent(tuned[key])}"
    return figures


def _is_loss(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("loss"), (int, float)) and json.dumps(line["loss"]) not in ("NaN", "Infinity")


def curve(losses: Sequence[float]) -> str:
    """Points of a polyline from left to right, 0 at the bottom; empty for fewer than two losses."""
    kept = losses[:: -(-len(losses) // POINTS)] if losses else []
    if len(kept) < 2:
        return ""
    highest = max(kept) or 1
    return " ".join(
        f"{WIDTH * i / (len(kept) - 1):.1f},{HEIGHT - 2 - (HEIGHT - 4) * loss / highest:.1f}"
        for i, loss in enumerate(kept)
    )
