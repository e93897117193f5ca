"""Questions to have answered: those of the training rows, or a file's; never a held-out one, nor one like it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ftkit.chat.format import Renderer
from ftkit.chat.messages import Conversation, Message, calls_of, is_trained
from ftkit.config.dataset import Dataset
from ftkit.data.conversations import Converter
from ftkit.data.prepared import conversations_of
from ftkit.data.readers import read_chunks
from ftkit.data.refused import Refused
from ftkit.data.splits import keys, sides
from ftkit.errors import StageError

CALLS = "the answer is a call of a tool"
NO_ANSWER = "there is no answer to compare with"
HELD_OUT = "held out, or like a question that is"
TWICE = "the same question again"


@dataclass(frozen=True)
class Item:
    """A question whose answer is known.

    Attributes:
        conversation: up to the answer, that included; the loss lies on it alone.
    """

    conversation: Conversation

    @property
    def row(self) -> int:
        return self.conversation.row

    @property
    def before(self) -> list[Message]:
        """All messages before the answer; the last is the user's, or a tool's result."""
        return self.conversation.messages[:-1]

    @property
    def question(self) -> str:
        return self.before[-1]["content"]

    @property
    def expected(self) -> str:
        return self.conversation.messages[-1]["content"]

    def asked(self, hint: str | None) -> Conversation:
        """The conversation with a hint behind its last question."""
        if not hint:
            return self.conversation
        *before, answer = self.conversation.messages
        last = max((i for i, message in enumerate(before) if message["role"] == "user"), default=len(before) - 1)
        before[last] = before[last] | {"content": before[last]["content"] + hint}
        return replace(self.conversation, messages=[*before, answer])


@dataclass
class Questions:
    """What is asked, and what is not.

    Attributes:
        items: with distinct messages before the answer.
        left_out: rows that are not asked, by the reason.
        heldout: conversations of the held-out rows.
        own: conversations of the training rows, whole.
    """

    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    heldout: list[Conversation] = field(default_factory=list)
    own: list[Conversation] = field(default_factory=list)

    @cached_property
    def left_out_in_words(self) -> str:
        """``3: the answer is a call of a tool; 1: …``; empty for none."""
        return "; ".join(f"{count:,}: {reason}" for reason, count in self.left_out.most_common())


def questions_of(prepared: Path, dataset: Dataset, path: str | None, limit: int | None) -> Questions:
    """The questions of the training rows, or of other rows.

    Args:
        prepared: parquet file of conversations that ``prepare`` wrote.
        dataset: its settings, by which other rows are read as well.
        path: of other rows; None for the training rows.
        limit: questions at the most.

    Raises:
        StageError: the other rows cannot be read, or there is nothing to ask.
    """
    found = Questions()
    for split, conversation in conversations_of(prepared, dataset):
        (found.heldout if split == "heldout" else found.own).append(conversation)
    asked = found.own if path is None else _others(path, dataset, found)
    seen: set[str] = set()
    for conversation in asked:
        try:
            item = _item(conversation)
        except Refused as error:
            found.left_out[error.reason] += 1
            continue
        key = json.dumps([item.before, conversation.tools], ensure_ascii=False)
        if key in seen:
            found.left_out[TWICE] += 1
            continue
        seen.add(key)
        found.items.append(item)
    found.items = found.items[:limit]
    if not found.items:
        why = f": {found.left_out_in_words}" if found.left_out else ""
        cure = "generate.path=<questions with their answers>, laid out as the rows of dataset.path"
        raise StageError(f"there is no question to ask{why}", where=path or str(prepared), cure=cure)
    return found


def check_writable(found: Questions, renderer: Renderer) -> None:
    """Leave out what the model's format cannot write."""
    kept = []
    for item in found.items:
        if reason := renderer.refusal(item.conversation):
            found.left_out[reason] += 1
        else:
            kept.append(item)
    found.items[:] = kept


def _item(conversation: Conversation) -> Item:
    """The conversation up to its last answer.

    Raises:
        Refused: that is none to compare with.
    """
    last = max((i for i, message in enumerate(conversation.messages) if is_trained(message)), default=0)
    answer = conversation.messages[last]
    if calls_of(answer):
        raise Refused(CALLS)
    if last == 0 or not answer["content"].strip():
        raise Refused(NO_ANSWER)
    before = [m | {"train": False} if m["role"] == "assistant" else m for m in conversation.messages[:last]]
    shortened = [*before, {name: answer[name] for name in ("role", "content", "thinking") if answer.get(name)}]
    effort, tags, tools = conversation.reasoning_effort, conversation.tags, conversation.tools
    return Item(Conversation(conversation.row, shortened, effort, tags, tools))


def _others(path: str, dataset: Dataset, found: Questions) -> list[Conversation]:
    """Conversations of other rows, without those whose question is held out."""
    source = dataset.model_copy(
        update={"path": path, "validation": None, "max_rows": None, "thinking": "optional", "split": "train"}
        | dict.fromkeys(("subset", "revision"))
    )
    converter, read = Converter(source), list[Conversation]()
    try:
        for chunk in read_chunks(source):
            for raw in () if chunk.validation else chunk.rows():
                try:
                    read.append(converter.conversation(raw))
                except Refused as error:
                    found.left_out[error.reason] += 1
    except StageError as error:
        raise StageError(
            error.what, where=error.where, cure=error.cure.replace("dataset.path", "generate.path")
        ) from error
    held = _like_heldout(found.heldout, read, dataset.near_duplicates)
    found.left_out[HELD_OUT] += int(held.sum())
    found.left_out += Counter()  # without what was not met
    return [conversation for conversation, is_held in zip(read, held, strict=True) if not is_held]


def _like_heldout(heldout: list[Conversation], others: list[Conversation], likeness: float) -> np.ndarray:
    """bool (others,): whether the split would hold a conversation out beside those that are."""
    if not heldout or not others:
        return np.zeros(len(others), bool)
    both = [*heldout, *others]
    own = np.arange(len(both)) < len(heldout)
    found = keys([c.question for c in both], [c.opening for c in both], near_duplicates=likeness < 1)
    return sides([found], heldout=0, likeness=likeness, validation=own).heldout[len(heldout) :]
