"""Asking a model: each answer is kept as soon as it is there, so that what was killed goes on with the rest."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from ftkit import __version__
from ftkit.config.schema import Config
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.generation import complete
from ftkit.evaluation.measures import Answer
from ftkit.evaluation.questions import Question
from ftkit.files import whole_lines, written_aside
from ftkit.serving.endpoint.harmony import Harmony

Say = Callable[[str], None]
SAME_ANSWERS = ("path", "folder", "name", "header", "columns", "match", "questions", "adapter", "lm_eval")
"""Of the evaluation's settings, those that change no answer to a given prompt."""
SAY_EVERY_S = 10.0
"""Seconds between two lines that say how far it has come."""


@dataclass(frozen=True)
class Asked:
    """What a model has answered.

    Attributes:
        answers: question by question, the samples of each together.
        losses: mean losses on the held-out rows that were asked, in nats a token, by the names of
            ``ftkit.training.heldout.PARTS``; empty where a file was asked.
    """

    answers: list[Answer]
    losses: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated in a second, all batches together."""
        seconds = sum(answer.seconds for answer in self.answers)
        return sum(answer.tokens for answer in self.answers) / max(seconds, 1e-9)


@dataclass(frozen=True)
class Asking:
    """The questions and how they are put.

    Attributes:
        questions: what is asked.
        config: the whole configuration.
        tokens: parquet file of token rows to measure the loss on; None where a file of questions is asked.
        folder: for the answers as they come.
        say: prints a line to the user.
    """

    questions: Sequence[Question]
    config: Config
    tokens: Path | None
    folder: Path
    say: Say

    def ask(self, candidate: Candidate) -> Asked:
        """Put all questions to a model, but for those that it has answered before."""
        kept = self._kept(candidate)
        (losses, answers), match = _read(kept), self.config.evaluation.match
        places = {(question.row, sample): place for place, (question, sample) in enumerate(self._asked())}
        done = {
            places[key]: replace(answer, expected=self._asked()[places[key]][0].expected, match=match)
            for key, answer in answers.items()
            if key in places
        }
        if done:
            self.say(f"{candidate.name}: {len(done)} of {len(places)} answered before")
        if len(done) < len(places):
            with written_aside(kept) as aside:  # without a line that was cut off
                aside.write_text("".join(map(_line, [{"losses": losses}, *map(asdict, done.values())])), "utf-8")
            losses = self._ask_rest(candidate, kept, losses, done)
        return Asked([done[place] for place in range(len(places))], losses or {})

    def _ask_rest(
        self, candidate: Candidate, kept: Path, losses: dict[str, float] | None, done: dict[int, Answer]
    ) -> dict[str, float] | None:
        """Fill in ``done``; returns the losses."""
        from ftkit.training.heldout import losses_on

        tokenizer, asked, task = candidate.tokenizer, self._asked(), self.config.evaluation
        harmony, loaded, said = Harmony(tokenizer), candidate.loaded, time.monotonic()
        with kept.open("a", encoding="utf-8") as stream:
            if losses is None and self.tokens:
                losses = losses_on(loaded, self.tokens, self.config, tokenizer, {q.row for q in self.questions})
                stream.write(_line({"losses": losses}))
            batches = complete(
                loaded,
                [question.prompt for question, _ in asked],
                max_new_tokens=task.max_new_tokens,
                batch_size=task.batch_size,
                stop_ids=harmony.stop_ids,
                pad_id=cast(int, tokenizer.pad_token_id),
                temperature=task.temperature,
                seed=task.seed,
                done=frozenset(done),
            )
            for batch in batches:
                for place, ids in zip(batch.places, batch.ids, strict=True):
                    done[place] = self._answer(asked[place], ids, batch.seconds / len(batch.ids), harmony, tokenizer)
                    stream.write(_line(asdict(done[place])))
                stream.flush()
                if time.monotonic() - said > SAY_EVERY_S:
                    self.say(f"{candidate.name}: {len(done)} of {len(asked)} answered")
                    said = time.monotonic()
        return losses

    def _asked(self) -> list[tuple[Question, int]]:
        """Each question with the numbers of its samples."""
        return [(question, sample) for question in self.questions for sample in range(self.config.evaluation.samples)]

    def _kept(self, candidate: Candidate) -> Path:
        """The file of a model's answers; those to other questions, or of an earlier model, are removed."""
        task = self.config.evaluation.model_dump(exclude=set(SAME_ANSWERS))
        made_from = json.dumps([__version__, candidate.digest, task, [question.prompt for question in self.questions]])
        path = self.folder / f".{candidate.name}.{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.jsonl"
        for other in self.folder.glob(f".{candidate.name}.*.jsonl"):
            if other != path or self.config.force:
                other.unlink()
        return path

    def _answer(
        self, asked: tuple[Question, int], ids: list[int], seconds: float, harmony: Harmony, tokenizer: Any
    ) -> Answer:
        parsed, (question, sample) = harmony.parse(ids), asked
        return Answer(
            row=question.row,
            sample=sample,
            question=question.question,
            expected=question.expected,
            match=self.config.evaluation.match,
            thinking=parsed.thinking,
            output=parsed.output,
            parses=parsed.well_formed and bool(parsed.output),
            finished=parsed.ended,
            tokens=len(ids),
            thinking_tokens=len(tokenizer(parsed.thinking, add_special_tokens=False)["input_ids"]),
            seconds=seconds,
        )


def _read(path: Path) -> tuple[dict[str, float] | None, dict[tuple[int, int], Answer]]:
    """Losses, and answers by row and sample, that an earlier process has left."""
    losses, answers = None, {}
    for line in whole_lines(path):
        if "losses" in line:
            losses = line["losses"]
        else:
            answers[line["row"], line["sample"]] = Answer(**line)
    return losses, answers


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
