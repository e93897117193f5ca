"""Who writes the answers: a model in this process, or a server; what tells it apart, and how its answers are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ftkit.chat.format import renderer_of
from ftkit.chat.messages import Conversation, Message
from ftkit.config.generation import Generate
from ftkit.config.schema import Config
from ftkit.evaluation.asking import AskedFor, Say, answers_of, file_of, keep_as_they_come
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.measures import Answer
from ftkit.evaluation.questions import Question
from ftkit.families import family_of
from ftkit.files import whole_lines, written_aside

SAME_ANSWERS = (
    *("path", "questions", "match", "samples", "keep", "language", "max_thinking_tokens", "near_duplicates"),
    *("rewrite", "replay", "hint", "concurrency", "timeout_s", "patience_s", "api_key_env", "batch_size"),
)
"""Settings that change no answer to a given question."""


class Source(Protocol):
    """Who writes.

    Attributes:
        shown: in words, for lines and pages.
        model: name of the model, for each row.
        digest: tells it apart from other models.
    """

    shown: str
    model: str
    digest: str

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids up to each conversation's last answer; empty where the server makes them."""
        ...

    def answers(
        self, asked: Sequence[AskedFor], before: Sequence[list[Message]], done: Collection[int]
    ) -> Iterator[Mapping[int, Answer]]:
        """Answers as they come, by their place in ``asked``.

        Args:
            asked: questions with the number of the sample.
            before: the messages of each.
            done: places that need no answer.
        """
        ...


@dataclass
class Local:
    """A model in this process.

    Attributes:
        candidate: how it is loaded.
        config: the whole configuration.
    """

    shown: str
    model: str
    digest: str
    candidate: Candidate
    config: Config

    @cached_property
    def renderer(self) -> Any:
        family = family_of(self.candidate.model.architecture.model_type)
        date = self.config.dataset.current_date
        return renderer_of(self.candidate.tokenizer, current_date=date, must_be=family.chat)

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        rows = self.renderer.token_rows(conversations)
        last = {int(of): place for place, of in enumerate(rows.conversations)}
        ids = list(rows.rows())
        return [ids[last[i]][: rows.prompt_length[last[i]]].tolist() for i in range(len(conversations))]

    def answers(
        self, asked: Sequence[AskedFor], before: Sequence[list[Message]], done: Collection[int]
    ) -> Iterator[Mapping[int, Answer]]:
        return answers_of(self.candidate, asked, self.config.generate, frozenset(done))


@dataclass(frozen=True)
class Writing:
    """What is asked of a source, and where its answers are kept as they come.

    Attributes:
        name: of the file.
        folder: that it lies in.
        say: prints a line to the user.
        afresh: forget what has been answered before.
    """

    name: str
    source: Source
    settings: Generate
    folder: Path
    say: Say
    afresh: bool = False

    def answers(self, conversations: Sequence[Conversation], samples: Sequence[Sequence[int]]) -> list[Answer]:
        """Answers to each conversation's last question, those of one together; what was answered before is not asked.

        Args:
            conversations: with the answer that is right at their end.
            samples: of each, the numbers of the answers to write.
        """
        prompts = self.source.prompts(conversations)
        questions = [
            Question(c.row, prompt, c.messages[-2]["content"], c.messages[-1]["content"])
            for c, prompt in zip(conversations, prompts, strict=True)
        ]
        asked = [(q, number) for q, numbers in zip(questions, samples, strict=True) for number in numbers]
        spread = [c for c, numbers in zip(conversations, samples, strict=True) for _ in numbers]
        before, keys = [c.messages[:-1] for c in spread], list(map(_key, spread))
        path = file_of(self.folder, self.name, self._made_from, afresh=self.afresh)
        done = self._kept(path, asked, keys)
        if done:
            self.say(f"{len(done):,} of {len(asked):,} answered before")
        if len(done) < len(asked):
            with written_aside(path) as aside:  # what was kept, without a line that was cut off
                lines = [json.dumps({"asked": keys[i], **asdict(done[i])}, ensure_ascii=False) + "\n" for i in done]
                aside.write_text("".join(lines), encoding="utf-8")
            with path.open("a", encoding="utf-8") as stream:
                batches = self.source.answers(asked, before, frozenset(done))
                keep_as_they_come(batches, done, stream, len(asked), self.say, lambda place: {"asked": keys[place]})
        return [done[place] for place in range(len(asked))]

    @property
    def _made_from(self) -> list[Any]:
        return [self.source.digest, self.settings.model_dump(exclude=set(SAME_ANSWERS))]

    def _kept(self, path: Path, asked: Sequence[AskedFor], keys: Sequence[str]) -> dict[int, Answer]:
        """What an earlier process has left, by its place; numbered and judged as it is asked now."""
        found = {(line.pop("asked", ""), line["sample"]): line for line in whole_lines(path)}
        done = {}
        for place, ((question, sample), key) in enumerate(zip(asked, keys, strict=True)):
            if line := found.get((key, sample)):
                answer = Answer(**line)
                done[place] = replace(answer, row=question.row, expected=question.expected, match=self.settings.match)
        return done


def _key(conversation: Conversation) -> str:
    """Tells questions apart by all that stands before the answer."""
    text = json.dumps(
        [conversation.messages[:-1], conversation.tools, conversation.reasoning_effort], ensure_ascii=False
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
