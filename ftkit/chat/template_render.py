"""Conversations to token rows by a model's own chat template; the loss lies on the assistant's turn alone.

A row is the template's generation prompt for the turns before, as an endpoint would send it, and what the model is to
generate from there.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ftkit.chat import template_limits
from ftkit.chat.harmony_render import TokenRows
from ftkit.chat.messages import Conversation, Message, ModelError, calls_of, texts_of
from ftkit.chat.template import CLOSE, OPEN, Template
from ftkit.chat.tokenization import tokens_within_characters
from ftkit.errors import StageError
from ftkit.processes import within


class TemplateRenderer:
    """Writes conversations by a tokenizer's chat template; it can be sent to another process.

    Args:
        tokenizer: of transformers.
        current_date: YYYY-MM-DD that the template's clock shows.

    Raises:
        StageError: the chat template is missing or cannot be used.
    """

    def __init__(self, tokenizer: Any, *, current_date: str):
        name = getattr(tokenizer, "name_or_path", "")
        cure = "model.tokenizer=<the hub id or folder of a tokenizer with a chat template>"
        written = tokenizer.chat_template
        for template in written.values() if isinstance(written, dict) else filter(None, [written]):
            template_limits.check_template(template, name, cure)
        try:
            with within(template_limits.LONGEST_S):
                self._template = Template(tokenizer, current_date)
        except ModelError as error:
            raise StageError(str(error), where=name, cure=cure) from error
        if not tokenizer.is_fast:
            raise StageError("the tokenizer has no tokenizer.json", where=name, cure=cure)
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()} - {OPEN, CLOSE}
        texts = sorted((token for token in added if token.strip()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._end = tokenizer.convert_tokens_to_ids(self._template.forms.end)
        self._tokenizer, self._name = tokenizer, name

    @property
    def within_characters(self) -> list[int]:
        return tokens_within_characters(self._tokenizer.get_vocab())

    def refusal(self, conversation: Conversation) -> str | None:
        """A text that the tokenizer would read as one of its own tokens would end or forge a message."""
        for message in conversation.messages:
            for text in texts_of(message):
                if found := self._special.search(text):
                    return f"a message holds {found.group()}, which the tokenizer reads as a token of its own"
        try:
            for prompt, _ in self._turns(conversation):
                if lost := [tool["name"] for tool in conversation.tools if tool["name"] not in prompt]:
                    raise ValueError(f"it drops the tool {lost[0]}")
        except Exception as error:  # templates raise what they like
            return self._not_taken(conversation, error)
        return None

    def _not_taken(self, conversation: Conversation, error: Exception) -> str:
        """What the template, which has raised an error at a conversation, does not take."""
        messages = [message for message in conversation.messages if message["role"] != "system"]
        if conversation.tools or any(map(calls_of, messages)):
            return f"the model's chat template does not take these tools or calls ({error})"
        if len(messages) < len(conversation.messages):
            with suppress(Exception):
                list(self._turns(replace(conversation, messages=messages)))
                return f"the model's chat template takes no system message ({error})"
        return f"the model's chat template does not take this chat ({error})"

    def token_rows(self, conversations: Sequence[Conversation]) -> TokenRows:
        """One row for each turn of the assistant that is trained; earlier ones stand in its prompt without thinking.

        Raises:
            StageError: the template does not take a conversation, as ``refusal`` would have said.
        """
        prompts, turns, spans, source = [], [], [], []
        for index, conversation in enumerate(conversations):
            try:
                written = list(self._turns(conversation))
            except Exception as error:  # templates raise what they like
                raise StageError(
                    self._not_taken(conversation, error), where=self._name, cure=template_limits.SYSTEM_LEFT_OUT
                ) from error
            for prompt, (turn, *span) in written:
                prompts.append(prompt)
                turns.append(turn)
                spans.append(span)
                source.append(index)
        encode = self._tokenizer.backend_tokenizer.encode_batch
        ids, starts, lengths, thinking = array("i"), [0], [], []
        for prompt, turn, (begin, end) in zip(
            encode(prompts, add_special_tokens=False), encode(turns, add_special_tokens=False), spans, strict=True
        ):
            ids.extend(prompt.ids)
            ids.extend(turn.ids)
            ids.append(self._end)
            starts.append(len(ids))
            lengths.append(len(prompt.ids))
            thinking.append(_tokens_of(turn.offsets, begin, end, len(prompt.ids)))
        return TokenRows(
            np.array(ids, np.int32),
            np.array(starts, np.int64),
            np.array(source, np.int64),
            np.array(lengths, np.int32),
            np.array(thinking, np.int32).reshape(-1, 2),
        )

    def _turns(self, conversation: Conversation) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """For each trained turn the text before it, its own, and where the thinking lies in that."""
        options: dict[str, Any] = {"effort": conversation.reasoning_effort, "tools": conversation.tools}
        before: list[dict[str, Any]] = []
        for message in conversation.messages:
            if message["role"] == "assistant" and message.get("train", True):
                prompt = self._template.text(before, prompt=True, **options)
                if calls_of(message):
                    yield prompt, self._call(before, prompt, message, options)
                else:
                    yield prompt, self._template.turn(message.get("thinking"), message["content"])
            before.append({key: value for key, value in message.items() if key not in ("thinking", "train")})

    def _call(
        self, before: list[dict[str, Any]], prompt: str, message: Message, options: dict[str, Any]
    ) -> tuple[str, int, int]:
        """A turn that calls tools, as the template itself writes it.

        Raises:
            ValueError: it does not write the turn where its generation prompt ends.
        """
        thinking = message.get("thinking", "")
        turn = {key: value for key, value in message.items() if key not in ("thinking", "train")}
        whole = self._template.text(
            [*before, turn | ({"reasoning_content": thinking} if thinking else {})], prompt=False, **options
        )
        if not whole.startswith(prompt):
            raise ValueError("it does not go on where its generation prompt ends")
        text = whole.removeprefix(prompt).rpartition(self._template.forms.end)[0]
        begins = text.find(thinking) if thinking else -1
        if thinking and begins < 0:
            raise ValueError("it drops the thinking before a call")
        if lost := [name for call in calls_of(message) if (name := call["function"]["name"]) not in text]:
            raise ValueError(f"it drops the call of {lost[0]}")
        return text, max(0, begins), max(0, begins) + len(thinking)


def _tokens_of(offsets: Sequence[tuple[int, int]], begin: int, end: int, shift: int) -> tuple[int, int]:
    """The tokens that lie whole in a span of characters; those that reach over its ends belong to the marks."""
    inside = [i for i, (first, last) in enumerate(offsets) if begin <= first and last <= end and first < last]
    return (shift + inside[0], shift + inside[-1] + 1) if inside else (shift, shift)
