"""A model's answers to lm-eval's requests, in the Harmony format; each is kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from ftkit import __version__
from ftkit.chat.format import parser_of, renderer_of
from ftkit.chat.messages import Conversation, Message
from ftkit.chat.tokenization import TextEncoder
from ftkit.config.schema import Config
from ftkit.evaluation.asking import SAY_EVERY_S, Say
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.generation import complete
from ftkit.evaluation.likelihood import log_likelihoods
from ftkit.files import whole_lines, written_aside

WINDOW = 4096
"""Tokens of a text whose likelihood is measured at a time; each window sees one token before it."""


class Prompt(NamedTuple):
    """A request as tokens.

    Attributes:
        ids: what stands before.
        rest: a continuation to measure; or the last of ``ids``, where they have opened the final channel already.
    """

    ids: list[int]
    rest: list[int]


class Chats:
    """Writes lm-eval's chats as the training's were, with its date and reasoning effort.

    Args:
        tokenizer: of transformers.
        config: the whole configuration.
    """

    def __init__(self, tokenizer: Any, config: Config):
        self._renderer = renderer_of(tokenizer, current_date=config.dataset.current_date)
        self._encode = TextEncoder(tokenizer.backend_tokenizer)
        self._effort, self._begin = config.dataset.reasoning_effort, _first_token(tokenizer)

    def to_answer(self, messages: Sequence[Message]) -> Prompt:
        """Up to where the assistant takes over; within its final answer, if the chat begins that."""
        chat, begun = _split(messages)
        (ids, start), (opened, _) = self._rows(chat, ["", begun])
        return Prompt(opened, ids[start:]) if begun else Prompt(ids[:start], [])

    def to_measure(self, messages: Sequence[Message], continuation: str) -> Prompt:
        """A continuation as the final answer, or as the rest of it, without thinking."""
        chat, begun = _split(messages)
        (opened, _), (whole, _) = self._rows(chat, [begun, begun + continuation])
        return Prompt(opened, whole[len(opened) :])

    def windows(self, text: str) -> list[Prompt]:
        """A text without a chat around it."""
        ids = [self._begin, *self._encode([text])[0]]
        return [Prompt([ids[i]], ids[i + 1 : i + 1 + WINDOW]) for i in range(0, len(ids) - 1, WINDOW)]

    def _rows(self, chat: list[Message], answers: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each answer the chat's ids up to its last token, and where the assistant takes over."""
        chats = [[*chat, {"role": "assistant", "content": answer}] for answer in answers]
        rows = self._renderer.token_rows([Conversation(0, messages, self._effort, {}) for messages in chats])
        last = {int(of): row for row, of in enumerate(rows.conversations)}  # the row of the chat's last turn
        ids = list(rows.rows())
        return [(ids[row][:-1].tolist(), int(rows.prompt_length[row])) for row in last.values()]


def _repeats(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt how often it came before: lm-eval repeats what it wants several answers to."""
    before = Counter[tuple[int, ...]]()
    found = []
    for prompt in map(tuple, prompts):
        found.append(before[prompt])
        before[prompt] += 1
    return found


def _first_token(tokenizer: Any) -> int:
    """What a text without a chat begins with, so that its own first token can be predicted."""
    ids = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return next(number for number in ids if number not in (None, tokenizer.unk_token_id))


def _split(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The chat, and the beginning of the answer, if there is one."""
    if messages and messages[-1]["role"] == "assistant":
        return list(messages[:-1]), messages[-1]["content"]
    return list(messages), ""


@dataclass(frozen=True)
class HarnessAnswers:
    """Answers of one model.

    Attributes:
        candidate: the model.
        chats: writes its prompts.
        config: the whole configuration.
        folder: for the answers as they come.
        say: prints a line to the user.
        cut_off: by task, the share of answers that had not ended after ``evaluation.max_new_tokens``.
    """

    candidate: Candidate
    chats: Chats
    config: Config
    folder: Path
    say: Say
    cut_off: dict[str, float] = field(default_factory=dict)

    def answer(self, task: str, kind: str, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """Answer requests of lm-eval, but for those that were answered before.

        Args:
            task: that they belong to.
            kind: ``generate``, ``loglikelihood`` or ``rolling``.
            requests: with ``messages`` and ``temperature``, ``messages`` and ``continuation``, or ``text``.

        Returns:
            For each the final answer's text; log-likelihood and whether it is the likeliest; or log-likelihood.
        """
        if kind == "generate":
            return self._generated(task, requests)
        if kind == "loglikelihood":
            prompts = [self.chats.to_measure(r["messages"], r["continuation"]) for r in requests]
            return self._kept(task, kind, prompts, self._measure)
        windows = [self.chats.windows(request["text"]) for request in requests]
        measured = iter(self._kept(task, kind, [window for of in windows for window in of], self._measure))
        return [sum(next(measured)[0] for _ in of) for of in windows]

    def _generated(self, task: str, requests: Sequence[dict[str, Any]]) -> list[str]:
        answers: dict[int, dict[str, Any]] = {}
        for temperature in sorted({request["temperature"] for request in requests}):
            places = [i for i, request in enumerate(requests) if request["temperature"] == temperature]
            prompts = [self.chats.to_answer(requests[i]["messages"]) for i in places]
            work = partial(self._complete, temperature)
            answers |= zip(places, self._kept(task, f"generate-{temperature:g}", prompts, work), strict=True)
        self.cut_off[task] = sum(not answer["finished"] for answer in answers.values()) / len(answers)
        return [answers[i]["output"] for i in range(len(requests))]

    def _complete(
        self, temperature: float, prompts: Sequence[Prompt], done: Collection[int]
    ) -> Iterator[tuple[int, Any]]:
        task, parser = self.config.evaluation, parser_of(self.candidate.tokenizer)
        for batch in complete(
            self.candidate.loaded,
            [prompt.ids for prompt in prompts],
            max_new_tokens=task.max_new_tokens,
            batch_size=task.batch_size,
            stop_ids=parser.stop_ids,
            pad_id=cast(int, self.candidate.tokenizer.pad_token_id),
            temperature=temperature,
            seed=task.seed,
            samples=_repeats([prompt.ids for prompt in prompts]),
            done=done,
        ):
            for place, ids in zip(batch.places, batch.ids, strict=True):
                parsed = parser.parse([*prompts[place].rest, *ids], prompts[place].ids)
                yield place, {"thinking": parsed.thinking, "output": parsed.output, "finished": parsed.ended}

    def _measure(self, prompts: Sequence[Prompt], done: Collection[int]) -> Iterator[tuple[int, Any]]:
        return log_likelihoods(
            self.candidate.loaded,
            [prompt.ids for prompt in prompts],
            [prompt.rest for prompt in prompts],
            batch_size=self.config.evaluation.batch_size,
            pad_id=cast(int, self.candidate.tokenizer.pad_token_id),
            done=done,
        )

    def _kept(
        self,
        task: str,
        kind: str,
        prompts: Sequence[Prompt],
        work: Callable[[Sequence[Prompt], Collection[int]], Iterator[tuple[int, Any]]],
    ) -> list[Any]:
        """What ``work`` yields, by place; what an earlier process has left of it is not done again."""
        path = self._file(task, kind, prompts)
        done = {line["place"]: line["answer"] for line in whole_lines(path)}
        title, said = f"{self.candidate.name}: {task}: ", time.monotonic()
        if done:
            self.say(f"{title}{len(done)} of {len(prompts)} answered before")
        if len(done) == len(prompts):
            return [done[place] for place in range(len(prompts))]
        with written_aside(path) as aside:  # without a line that was cut off
            aside.write_text("".join(_line(*pair) for pair in done.items()), "utf-8")
        with path.open("a", encoding="utf-8") as stream:
            for place, answer in work(prompts, frozenset(done)):
                stream.write(_line(place, answer))
                stream.flush()
                done[place] = answer
                if time.monotonic() - said > SAY_EVERY_S:
                    self.say(f"{title}{len(done)} of {len(prompts)} answered")
                    said = time.monotonic()
        return [done[place] for place in range(len(prompts))]

    def _file(self, task: str, kind: str, prompts: Sequence[Prompt]) -> Path:
        """Where answers are kept; those to other questions, or of an earlier model, are removed."""
        settings = self.config.evaluation
        asked = [settings.max_new_tokens, settings.batch_size, settings.seed, prompts]
        made_from = json.dumps([__version__, self.candidate.digest, asked])
        begin = f".lm_eval.{self.candidate.name}.{re.sub(r'[^A-Za-z0-9_-]', '_', task)}.{kind}"
        path = self.folder / f"{begin}.{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.jsonl"
        for other in self.folder.glob(f"{begin}.*.jsonl"):
            if other != path or self.config.force:
                other.unlink()
        return path


def _line(place: int, answer: Any) -> str:
    return json.dumps({"place": place, "answer": answer}, ensure_ascii=False) + "\n"
