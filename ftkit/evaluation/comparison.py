"""Base and tuned model side by side, the unmerged adapter between them if asked: figures, changes, and their page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftkit.config.schema import Config
from ftkit.evaluation.asking import Asked
from ftkit.evaluation.intervals import Figure, change_of_shares, mean_of_shares
from ftkit.evaluation.lm_eval.figures import HarnessComparison
from ftkit.evaluation.measures import COUNTS, MEASURES, Answer, by_question, differences, figures, pass_at
from ftkit.evaluation.questions import guard_of, in_words
from ftkit.html import HOME, write_page

TEMPLATE = "evaluation.html.jinja"
LOWER_IS_BETTER = ("loops",)
SHOWN_QUESTIONS = 10
SHOWN_CHANGES = 20
LOSSES = {
    "eval_loss": "loss on the held-out rows",
    "eval_thinking_loss": "… on their thinking",
    "eval_answer_loss": "… on their answers",
}


@dataclass(frozen=True)
class Row:
    """One measure of the models.

    Attributes:
        name: one of ``MEASURES``.
        label: how it is called.
        base, tuned: of the models.
        change: tuned − base, paired question by question.
        adapter: of the base with its unmerged adapter; None where it was not asked.
        merging: tuned − adapter, paired.
    """

    name: str
    label: str
    base: Figure
    tuned: Figure
    change: Figure
    adapter: Figure | None
    merging: Figure | None

    @property
    def is_share(self) -> bool:
        return self.name not in COUNTS

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the change leaves out zero, else ``unsure``."""
        if not self.is_share or not self.change.excludes_zero:
            return "unsure"
        return "better" if (self.change.mean > 0) is (self.name not in LOWER_IS_BETTER) else "worse"


@dataclass(frozen=True)
class Pair:
    """Both models' answers to one question."""

    base: Answer
    tuned: Answer


@dataclass(frozen=True)
class Comparison:
    """What the models made of the same questions; ``base.answers[i]`` and ``tuned.answers[i]`` belong together.

    ``trained_on`` of the questions are training rows. ``pass_at`` are the k of pass@k that are measured.
    """

    base: Asked
    tuned: Asked
    adapter: Asked | None = None
    trained_on: int = 0
    pass_at: Sequence[int] = ()

    @cached_property
    def rows(self) -> list[Row]:
        """A row for each of ``MEASURES``, and of ``pass_at``."""
        before, after = self.base.answers, self.tuned.answers
        old, new, change = figures(before), figures(after), differences(before, after)
        unmerged = figures(self.adapter.answers) if self.adapter else {}
        merging = differences(self.adapter.answers, after) if self.adapter else {}
        return [
            Row(name, MEASURES[name], old[name], new[name], change[name], unmerged.get(name), merging.get(name))
            for name in MEASURES
        ] + [self._passes(k) for k in self.pass_at]

    def _passes(self, k: int) -> Row:
        old, new = pass_at(self.base.answers, k), pass_at(self.tuned.answers, k)
        other = pass_at(self.adapter.answers, k) if self.adapter else {}
        return Row(
            f"pass@{k}",
            f"one of {k} answers is right" if k > 1 else "an answer is right",
            mean_of_shares([*old.values()], len(old)),
            mean_of_shares([*new.values()], len(new)),
            change_of_shares([new[row] - old[row] for row in old]),
            mean_of_shares([*other.values()], len(other)) if other else None,
            change_of_shares([new[row] - other[row] for row in other]) if other else None,
        )

    @property
    def shown(self) -> list[Row]:
        """The rows that say something of their own."""
        by_number = self.base.answers[0].match == "last-number"
        return [row for row in self.rows if not (by_number and row.name == "right_number")]

    @property
    def of_language(self) -> list[Row]:
        """In which language it thinks, and whether the answers are right."""
        return [row for row in self.rows if row.name in ("thinks_in_japanese", "right")]

    @property
    def pairs(self) -> list[Pair]:
        return [Pair(*both) for both in zip(self.base.answers, self.tuned.answers, strict=True)]

    @property
    def questions(self) -> int:
        return len({answer.row for answer in self.base.answers})

    def right_less_often(self) -> list[Pair]:
        """Questions that the tuned model gets right less often than the base, one pair each."""
        return self._changed(-1)

    def right_more_often(self) -> list[Pair]:
        """Questions that the tuned model gets right more often than the base, one pair each."""
        return self._changed(1)

    def _changed(self, sign: int) -> list[Pair]:
        old, new = (by_question(asked.answers, "right") for asked in (self.base, self.tuned))
        rows = {row for row in old if (new[row] - old[row]) * sign > 0}
        telling = [p for p in self.pairs if p.base.row in rows and (p.tuned.right - p.base.right) * sign > 0]
        return list({pair.base.row: pair for pair in reversed(telling)}.values())[::-1]

    def result(self) -> dict[str, Any]:
        """Figures for the record: means of ``base``, ``merged`` and ``difference``, their intervals, losses, speed.

        Where the adapter was asked, also of ``adapter`` and of ``merging``, which is what merging has changed.
        """
        of = {"base": "base", "merged": "tuned", "difference": "change"}
        asked = {"base": self.base, "merged": self.tuned}
        if self.adapter:
            of, asked = of | {"adapter": "adapter", "merging": "merging"}, asked | {"adapter": self.adapter}
        found = {name: {row.name: getattr(row, attribute) for row in self.rows} for name, attribute in of.items()}
        return {
            **{name: {key: figure.mean for key, figure in row.items()} for name, row in found.items()},
            "intervals": {
                name: {key: figure.ends and list(figure.ends) for key, figure in row.items()}
                for name, row in found.items()
            },
            "losses": {name: answered.losses for name, answered in asked.items()},
            "tokens_per_s": {name: answered.tokens_per_s for name, answered in asked.items()},
            "questions": self.questions,
            "trained_on": self.trained_on,
        }


def write_comparison(
    path: Path,
    compared: Comparison,
    config: Config,
    by_lm_eval: HarnessComparison | None = None,
    guard: Comparison | None = None,
    untold: Comparison | None = None,
) -> None:
    """Write the page; ``guard`` is of the questions of ``evaluation.guard``, ``untold`` of the same questions
    without the language line."""
    worse, better = compared.right_less_often(), compared.right_more_often()
    write_page(
        path,
        "evaluation",
        TEMPLATE,
        home=HOME,
        name=config.run.name,
        task=config.evaluation,
        asked=in_words(compared.questions, config.evaluation),
        model=config.compared_with.pretrained_model_name_or_path,
        format=config.merge.format,
        compared=compared,
        models=[asked for asked in (compared.base, compared.adapter, compared.tuned) if asked],
        by_name={row.name: row for row in compared.rows},
        shares=[row for row in compared.shown if row.is_share],
        losses=[(label, key) for key, label in LOSSES.items() if key in compared.base.losses],
        worse=worse,
        better=better,
        shown_changes=SHOWN_CHANGES,
        shown=_spread(compared.pairs),
        by_lm_eval=by_lm_eval,
        guard=guard and next(row for row in guard.rows if row.name == "right"),
        untold=untold and untold.of_language,
        guard_asked=guard and in_words(guard.questions, guard_of(config.evaluation)),
    )


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """Ten questions, evenly spread, with their first answers."""
    first = [pair for pair in pairs if pair.base.sample == 0]
    count = min(SHOWN_QUESTIONS, len(first))
    return [first[i * len(first) // count] for i in range(count)]
