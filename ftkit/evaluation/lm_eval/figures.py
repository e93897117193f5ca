"""lm-eval's figures of base and tuned model side by side, the unmerged adapter's between them if it was asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from rich.table import Table
from rich.text import Text

from ftkit.config.gate import LM_EVAL
from ftkit.console import listing
from ftkit.evaluation.intervals import SIGNIFICANT, Z, probability_of_signs
from ftkit.html import measured, percent
from ftkit.translation import said


@dataclass(frozen=True)
class Estimate:
    """A figure or a change of one.

    Attributes:
        value: as lm-eval gives it.
        stderr: its standard error; None where none is known.
        by_chance: how often chance alone makes as large a change, by the exact test of signs; None where it cannot be
            told, as of what is no mean over questions.
    """

    value: float
    stderr: float | None
    by_chance: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval of a normal distribution leaves out zero, and the exact test agrees."""
        if self.by_chance is not None and self.by_chance >= SIGNIFICANT:
            return False
        return self.stderr is not None and abs(self.value) > Z * self.stderr


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task.

    Attributes:
        task: name of the task, or of the group.
        part_of: the group or tag that was asked for, where this is but a part of it.
        metric: with its filter, if lm-eval applied one: ``exact_match.strict-match``.
        questions: that were asked; None for a group.
        higher_is_better: None where lm-eval does not say.
        base, tuned: of the models.
        change: tuned − base; its error is that of the paired differences where each question has a value, else as
            of independent figures.
        adapter: of the base with its unmerged adapter; None where it was not asked.
        merging: tuned − adapter.
    """

    task: str
    part_of: str
    metric: str
    questions: int | None
    higher_is_better: bool | None
    base: Estimate
    tuned: Estimate
    change: Estimate
    adapter: Estimate | None
    merging: Estimate | None

    @property
    def name(self) -> str:
        """By which ``registration.gate`` knows it: ``lm_eval.gsm8k.exact_match.strict-match``."""
        return f"{LM_EVAL}{self.task}.{self.metric}"

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the change leaves out zero, else ``unsure``."""
        if self.higher_is_better is None or not self.change.excludes_zero:
            return "unsure"
        return "better" if (self.change.value > 0) is self.higher_is_better else "worse"

    def result(self) -> dict[str, Any]:
        """For the record."""
        estimates = {
            "base": self.base,
            "adapter": self.adapter,
            "merged": self.tuned,
            "difference": self.change,
            "merging": self.merging,
        }
        asked = {name: estimate for name, estimate in estimates.items() if estimate}
        return {
            "name": self.name,
            "task": self.task,
            "part_of": self.part_of,
            "metric": self.metric,
            "questions": self.questions,
            "higher_is_better": self.higher_is_better,
            **{name: estimate.value for name, estimate in asked.items()},
            "stderr": {name: estimate.stderr for name, estimate in asked.items()},
        }


@dataclass(frozen=True)
class HarnessComparison:
    """What lm-eval made of the models.

    Attributes:
        version: of lm-eval.
        rows: a row for each metric of each task.
        cut_off: for each model by its name and each task, the share of answers that had not ended when they were cut.
    """

    version: str
    rows: list[TaskRow]
    cut_off: Mapping[str, Mapping[str, float]]

    @property
    def main_rows(self) -> list[TaskRow]:
        """Those of what was asked for by name, without the parts of groups."""
        return [row for row in self.rows if not row.part_of]

    @property
    def cut_off_in_words(self) -> list[str]:
        """A line for each model and task of whose answers some were cut off: they count as they stood then."""
        return [
            f"{percent(share)} of the answers of {name} to {task} were cut off"
            for name, tasks in self.cut_off.items()
            for task, share in tasks.items()
            if share
        ]

    def result(self) -> dict[str, Any]:
        """For the record."""
        return {
            "version": self.version,
            "figures": [row.result() for row in self.rows],
            "cut_off": {name: dict(tasks) for name, tasks in self.cut_off.items()},
        }


def task_rows(task: str, figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[TaskRow]:
    """The rows of one task that was asked for.

    Args:
        task: its name, or a group's or tag's.
        figures: of ``Harness.evaluate``, by name of the model: ``base``, ``merged`` and perhaps ``adapter``.
    """
    by_model = {name: {(f["task"], f["metric"]): f for f in found} for name, found in figures.items()}
    is_a_tag = all(figure["task"] != task for figure in figures["base"])
    rows = []
    for key, base in by_model["base"].items():
        tuned, adapter = by_model["merged"].get(key), by_model.get("adapter", {}).get(key)
        if tuned is None:
            continue
        rows.append(
            TaskRow(
                task=base["task"],
                part_of="" if is_a_tag or base["task"] == task else task,
                metric=base["metric"],
                questions=base["questions"],
                higher_is_better=base["higher_is_better"],
                base=_estimate(base),
                tuned=_estimate(tuned),
                change=_change(base, tuned),
                adapter=_estimate(adapter) if adapter else None,
                merging=_change(adapter, tuned) if adapter else None,
            )
        )
    return rows


def _estimate(figure: Mapping[str, Any]) -> Estimate:
    return Estimate(figure["value"], figure["stderr"])


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate:
    old, new = before["each"], after["each"]
    value = after["value"] - before["value"]
    if old and new and len(old) == len(new) > 1:
        changes = [b - a for a, b in zip(old, new, strict=True)]
        largest = max(map(abs, changes)) or 1.0
        chance = probability_of_signs([change / largest for change in changes])
        return Estimate(value, stdev(changes) / math.sqrt(len(old)), chance)
    if before["stderr"] is None or after["stderr"] is None:
        return Estimate(value, None)
    return Estimate(value, math.hypot(before["stderr"], after["stderr"]))


def table_of(compared: HarnessComparison, asked_adapter: bool) -> Table:
    """For the terminal: what was asked for by name, ``0.513 ± 0.014``."""
    unmerged = ["adapter"] if asked_adapter else []
    headings = f"lm-eval {compared.version}, ± standard error", "before", *unmerged, "after", "change"
    table = listing(*map(said, headings))
    for row in compared.main_rows:
        style = "" if row.verdict == "unsure" else "bold"
        estimates = [shown(estimate) for estimate in (row.base, row.adapter, row.tuned) if estimate]
        table.add_row(f"{row.task} {row.metric}", *estimates, Text(shown(row.change, "+"), style=style))
    return table


def shown(estimate: Estimate, sign: str = "") -> str:
    """``0.513 ± 0.014``; ``sign="+"`` for changes."""
    error = "" if estimate.stderr is None else f" ± {measured(estimate.stderr)}"
    return f"{measured(estimate.value, sign)}{error}"
