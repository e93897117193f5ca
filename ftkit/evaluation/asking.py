"""Asking a model: each answer is kept as soon as it is there, so that what was killed goes on with the rest."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO, cast

from ftkit import __version__
from ftkit.chat.format import Parser, parser_of
from ftkit.chat.messages import call_in_words
from ftkit.config.generation import Generate
from ftkit.config.groups import Evaluation
from ftkit.config.schema import Config
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.generation import complete
from ftkit.evaluation.measures import Answer
from ftkit.evaluation.questions import Question
from ftkit.files import whole_lines, written_aside
from ftkit.html import duration

Say = Callable[[str], None]
AskedFor = tuple[Question, int]
"""A question, and the number of the sample that is asked for."""
Drawing = Evaluation | Generate
"""Settings that say how answers are drawn and judged."""
SAME_ANSWERS = (
    *("path", "folder", "name", "header", "columns", "choices", "instruction", "match", "questions", "adapter"),
    *("pass_at", "guard", "lm_eval", "without_language_line"),
)
"""Of the evaluation's settings, those that change no answer to a given prompt."""
SAY_EVERY_S = 10.0
"""Seconds between two lines that say how far it has come."""


@dataclass(frozen=True)
class Asked:
    """What a model has answered.

    Attributes:
        answers: question by question, the samples of each together.
        losses: mean losses on the held-out rows that were asked, in nats a token, by the names of
            ``ftkit.training.losses``; empty where a file was asked.
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
        name: sets the files of these answers apart from those to other questions.
    """

    questions: Sequence[Question]
    config: Config
    tokens: Path | None
    folder: Path
    say: Say
    name: str = ""

    def ask(self, candidate: Candidate) -> Asked:
        """Put all questions to a model, but for those that it has answered before."""
        kept, asked = self._kept(candidate), self._asked()
        losses, done = kept_answers(kept, asked, self.config.evaluation.match)
        if done:
            self.say(f"{candidate.name}: {len(done)} of {len(asked)} answered before")
        if len(done) < len(asked):
            write_again(kept, losses, done)
            losses = self._ask_rest(candidate, kept, losses, done)
        return Asked([done[place] for place in range(len(asked))], losses or {})

    def _ask_rest(
        self, candidate: Candidate, kept: Path, losses: dict[str, float] | None, done: dict[int, Answer]
    ) -> dict[str, float] | None:
        """Fill in ``done``; returns the losses."""
        from ftkit.training.heldout import losses_on

        tokenizer, asked = candidate.tokenizer, self._asked()
        with kept.open("a", encoding="utf-8") as stream:
            if losses is None and self.tokens:
                rows = {question.row for question in self.questions}
                losses = losses_on(candidate.loaded, self.tokens, self.config, tokenizer, rows)
                stream.write(_line({"losses": losses}))
            batches = answers_of(candidate, asked, self.config.evaluation, frozenset(done))
            keep_as_they_come(batches, done, stream, len(asked), lambda text: self.say(f"{candidate.name}: {text}"))
        return losses

    def _asked(self) -> list[AskedFor]:
        """Each question with the numbers of its samples."""
        return [(question, sample) for question in self.questions for sample in range(self.config.evaluation.samples)]

    def _kept(self, candidate: Candidate) -> Path:
        """The file of a model's answers; those to other questions, or of an earlier model, are removed."""
        task = self.config.evaluation.model_dump(exclude=set(SAME_ANSWERS))
        made_from = [candidate.digest, task, [question.prompt for question in self.questions]]
        name = f"{candidate.name}-{self.name}" if self.name else candidate.name
        return file_of(self.folder, name, made_from, afresh=self.config.force)


def file_of(folder: Path, name: str, made_from: Sequence[Any], *, afresh: bool) -> Path:
    """The file that a model's answers are kept in as they come; those made from anything else are removed.

    Args:
        made_from: all that the answers depend on, as JSON writes it.
        afresh: remove those made from just this as well.
    """
    text = json.dumps([__version__, *made_from])
    path = folder / f".{name}.{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    for other in folder.glob(f".{name}.*.jsonl"):
        if other != path or afresh:
            other.unlink()
    return path


def kept_answers(
    path: Path, asked: Sequence[AskedFor], match: str
) -> tuple[dict[str, float] | None, dict[int, Answer]]:
    """Losses, and answers by their place in ``asked``, that an earlier process has left; judged as it is asked now."""
    losses, answers = _read(path)
    places = {(question.row, sample): place for place, (question, sample) in enumerate(asked)}
    return losses, {
        places[key]: replace(answer, expected=asked[places[key]][0].expected, match=match)
        for key, answer in answers.items()
        if key in places
    }


def write_again(path: Path, losses: dict[str, float] | None, done: Mapping[int, Answer]) -> None:
    """Write what is kept anew, without a line that was cut off."""
    with written_aside(path) as aside:
        aside.write_text("".join(map(_line, [{"losses": losses}, *map(asdict, done.values())])), "utf-8")


def keep_as_they_come(
    batches: Iterable[Mapping[int, Answer]],
    done: dict[int, Answer],
    stream: TextIO,
    total: int,
    say: Say,
    beside: Callable[[int], Mapping[str, Any]] = lambda place: {},
) -> None:
    """Write each answer down as soon as it is there, and say every ten seconds how far it has come.

    Args:
        batches: answers by their place.
        done: takes them.
        total: how many there will be.
        beside: more of an answer's line, by its place.
    """
    began = said = time.monotonic()
    before = len(done)
    for batch in batches:
        done.update(batch)
        stream.writelines(_line({**beside(place), **asdict(answer)}) for place, answer in batch.items())
        stream.flush()
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            left = (total - len(done)) * (said - began) / (len(done) - before)
            say(f"{len(done):,} of {total:,} answered, {duration(left / 3600)} left")


def answers_of(
    candidate: Candidate, asked: Sequence[AskedFor], task: Drawing, done: Collection[int]
) -> Iterator[dict[int, Answer]]:
    """What a model in this process answers, batch by batch, each answer by its place in ``asked``."""
    tokenizer = candidate.tokenizer
    parser = parser_of(tokenizer)
    batches = complete(
        candidate.loaded,
        [question.prompt for question, _ in asked],
        max_new_tokens=task.max_new_tokens,
        batch_size=task.batch_size,
        stop_ids=parser.stop_ids,
        pad_id=cast(int, tokenizer.pad_token_id),
        temperature=task.temperature,
        top_p=getattr(task, "top_p", 1.0),
        seed=task.seed,
        samples=[sample for _, sample in asked],
        done=done,
    )
    for batch in batches:
        seconds = batch.seconds / len(batch.ids)
        yield {
            place: _answer(asked[place], ids, seconds, parser, tokenizer, task.match)
            for place, ids in zip(batch.places, batch.ids, strict=True)
        }


def _answer(asked: AskedFor, ids: list[int], seconds: float, parser: Parser, tokenizer: Any, match: str) -> Answer:
    question, sample = asked
    parsed = parser.parse(ids, question.prompt)
    output = parsed.output or "\n".join(call_in_words(*call) for call in parsed.calls)
    return Answer(
        row=question.row,
        sample=sample,
        question=question.question,
        expected=question.expected,
        match=match,
        thinking=parsed.thinking,
        output=output,
        parses=parsed.well_formed and bool(output),
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
