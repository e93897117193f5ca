"""What a generation leaves: rows that ``prepare`` reads, pairs of a right and a wrong answer, every answer, a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.chat.messages import Conversation, Message
from ftkit.config.schema import Config
from ftkit.evaluation.measures import Answer, by_question
from ftkit.files import written_aside
from ftkit.generation.layout import line_of, plain_messages, row_of
from ftkit.generation.questions import Item, Questions
from ftkit.generation.sifting import KEPT, REASONS, Sifted
from ftkit.generation.sources import Source
from ftkit.html import HOME, write_page

ROWS, PAIRS, ANSWERS, PAGE = "rows", "pairs.jsonl", "answers.jsonl", "report.html"
KEPT_ROWS, OWN_ROWS, HELD_OUT_ROWS = "kept.jsonl", "own.jsonl", "validation.jsonl"
"""In the folder ``ROWS``; the last one's name has ``prepare`` hold its rows out."""
TEMPLATE = "generation.html.jinja"
SHOWN_KEPT, SHOWN_DROPPED = 10, 3


@dataclass(frozen=True)
class Outcome:
    """All that came of it.

    Attributes:
        config: the whole configuration.
        source: who wrote.
        questions: what was asked, and what was not.
        sifted: the answers with their verdicts.
        before: thinking as it was before it was written anew, by the place of its answer.
    """

    config: Config
    source: Source
    questions: Questions
    sifted: Sifted
    before: dict[int, str]

    @property
    def kept(self) -> int:
        return self.sifted.counts[KEPT]

    @property
    def dropped(self) -> list[tuple[str, int]]:
        """Answers that were not kept, by the reason, in the order in which it is asked."""
        counts = self.sifted.counts
        return [(reason, counts[reason]) for reason in REASONS if counts[reason]]

    @property
    def dropped_in_words(self) -> str:
        return "; ".join(f"{count:,} {reason}" for reason, count in self.dropped)

    @property
    def answered(self) -> int:
        """Questions of which an answer is kept."""
        return len(self.sifted.kept_of())

    def result(self) -> dict[str, Any]:
        """Figures for the record."""
        answers = self.sifted.answers
        right = by_question(answers, "right")
        return {
            "source": self.source.shown,
            "digest": self.source.digest,
            "questions": len(self.questions.items),
            "left_out": dict(self.questions.left_out),
            "answers": len(answers),
            "kept": self.kept,
            "questions_kept": self.answered,
            "dropped": dict(self.dropped),
            "rewritten": sum(self.sifted.verdicts[place] == KEPT for place in self.before),
            "right": sum(right.values()) / len(right),
            "right_once": sum(share > 0 for share in right.values()) / len(right),
            "tokens": sum(answer.tokens for answer in answers),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write everything; returns the files."""
        dataset = self.config.dataset
        rows = {KEPT_ROWS: self._kept_rows()}
        if self.config.generate.replay:
            rows[OWN_ROWS] = (row_of(conversation, dataset) for conversation in self.questions.own)
        if self.questions.heldout:
            rows[HELD_OUT_ROWS] = (row_of(conversation, dataset) for conversation in self.questions.heldout)
        with written_aside(folder / ROWS) as aside:
            aside.mkdir()
            for name, found in rows.items():
                _write(aside / name, found)
        for name, found in ((PAIRS, self._pairs()), (ANSWERS, self._answers())):
            with written_aside(folder / name) as aside:
                _write(aside, found)
        self._write_page(folder / PAGE)
        return [*(folder / ROWS / name for name in rows), *(folder / name for name in (PAIRS, ANSWERS, PAGE))]

    def _items(self) -> dict[int, Item]:
        return {item.row: item for item in self.questions.items}

    def _kept_rows(self) -> Iterator[dict[str, Any]]:
        items, settings = self._items(), self.config.generate
        anew = {(self.sifted.answers[place].row, self.sifted.answers[place].sample) for place in self.before}
        for answer in self.sifted.with_verdict(KEPT):
            item = items[answer.row].conversation
            messages = [*items[answer.row].before, _message(answer)]
            whole = Conversation(item.row, messages, item.reasoning_effort, item.tags, item.tools)
            yield row_of(whole, self.config.dataset) | {
                "generated": {
                    "model": self.source.model,
                    "digest": self.source.digest,
                    "seed": settings.seed,
                    "temperature": settings.temperature,
                    "top_p": settings.top_p,
                    "sample": answer.sample,
                    "row": answer.row,
                    "rewritten": (answer.row, answer.sample) in anew,
                }
            }

    def _pairs(self) -> Iterator[dict[str, Any]]:
        items = self._items()
        for chosen, rejected in self.sifted.pairs(self.config.generate.keep):
            pair = {"chosen": [_message(chosen)], "rejected": [_message(rejected)]}
            tools = items[chosen.row].conversation.tools
            prompt = plain_messages(items[chosen.row].before)
            yield {"prompt": prompt, **pair} | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {})

    def _answers(self) -> Iterator[dict[str, Any]]:
        for place, (answer, verdict) in enumerate(zip(self.sifted.answers, self.sifted.verdicts, strict=True)):
            shown = ("row", "sample", "question", "expected", "thinking", "output", "right", "tokens")
            line = {"verdict": verdict} | {name: getattr(answer, name) for name in shown}
            yield line | ({"thinking_before": self.before[place]} if place in self.before else {})

    def _write_page(self, path: Path) -> None:
        right = by_question(self.sifted.answers, "right")
        samples = self.config.generate.samples
        times = [round(share * samples) for share in right.values()]
        write_page(
            path,
            "generation",
            TEMPLATE,
            home=HOME,
            name=self.config.run.name,
            settings=self.config.generate,
            outcome=self,
            result=self.result(),
            left_out=self.questions.left_out.most_common(),
            solved=[(count, times.count(count)) for count in range(samples + 1)],
            kept=_spread(list(self.sifted.with_verdict(KEPT)), SHOWN_KEPT),
            dropped=[
                (reason, count, _spread(list(self.sifted.with_verdict(reason)), SHOWN_DROPPED))
                for reason, count in self.dropped
            ],
        )


def _message(answer: Answer) -> Message:
    return {"role": "assistant", "thinking": answer.thinking, "content": answer.output}


def _spread(answers: list[Answer], count: int) -> list[Answer]:
    """Some of them, evenly spread."""
    count = min(count, len(answers))
    return [answers[i * len(answers) // count] for i in range(count)]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(map(line_of, rows))
