"""Conversations to token rows in the Harmony format; the loss lies on the assistant's turn alone.

Every text is tokenised apart from the special tokens around it, so none can turn into one. ``checked_harmony`` holds
the result against the model's own chat template before the first row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ftkit.data.conversations import EFFORTS, Conversation, Message
from ftkit.data.tokenization import TextEncoder
from ftkit.errors import StageError

IGNORED = -100
"""Label of a token that carries no loss, as torch's cross entropy has it."""

PINNED_CLOCK = "{%- macro strftime_now(_) -%}{{ current_date }}{%- endmacro -%}"
"""Put before a chat template, it takes the place of the template's own clock."""

SPECIAL = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")


@dataclass(frozen=True)
class TokenRows:
    """Training rows, end to end: each a conversation up to and including one assistant turn.

    Attributes:
        input_ids: int32 (tokens,).
        starts: int64 (rows + 1,): row ``i`` is ``input_ids[starts[i]:starts[i + 1]]``.
        conversations: int64 (rows,): index of the conversation that a row comes from.
        prompt_length: int32 (rows,): tokens before the completion; the loss lies on all tokens from there.
        thinking: int32 (rows, 2): where the thinking's text begins and ends within its row; empty when there is none.
    """

    input_ids: np.ndarray
    starts: np.ndarray
    conversations: np.ndarray
    prompt_length: np.ndarray
    thinking: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,): tokens of each row."""
        return np.diff(self.starts)

    def rows(self) -> Iterator[np.ndarray]:
        """The token ids of each row."""
        return (self.input_ids[start:end] for start, end in pairwise(self.starts.tolist()))


def labels_of(input_ids: np.ndarray, starts: np.ndarray, prompt_length: np.ndarray) -> np.ndarray:
    """int32 (tokens,): ``IGNORED`` on each row's prompt, the token ids after it; arguments as in ``TokenRows``."""
    lengths = np.diff(starts)
    position = np.arange(starts[-1] - starts[0]) - np.repeat(starts[:-1] - starts[0], lengths)
    return np.where(position < np.repeat(prompt_length, lengths), np.int32(IGNORED), input_ids)


class Harmony:
    """Writes conversations as Harmony tokens. It can be sent to another process.

    Args:
        encode: texts to token ids.
        special: ids of ``SPECIAL``.
        system_blocks: for each reasoning effort the text of the system block, between ``<|message|>`` and ``<|end|>``.
    """

    def __init__(self, encode: TextEncoder, special: Sequence[int], system_blocks: Mapping[str, str]):
        self._encode = encode
        start, message, channel, end, self._return = special
        word = {w: encode([w])[0] for w in ("system", "developer", "user", "assistant", "analysis", "final")}
        self._end = [end]
        self._user = [start, *word["user"], message]
        self._assistant = [start, *word["assistant"]]
        self._analysis = [channel, *word["analysis"], message]
        self._final = [channel, *word["final"], message]
        self._developer = [start, *word["developer"], message]
        self._system = {
            effort: [start, *word["system"], message, *self._encode([text])[0], end]
            for effort, text in system_blocks.items()
        }

    @property
    def within_characters(self) -> list[int]:
        """Ids of the tokens that begin inside the bytes of a character."""
        return self._encode.within_characters

    def token_rows(self, conversations: Sequence[Conversation]) -> TokenRows:
        """One row for each assistant turn; earlier turns stand in its prompt without their thinking, as in a chat."""
        encoded = iter(self._encode([text for c in conversations for text in _texts(c.messages)]))
        developer: dict[str, list[int]] = {}
        ids, starts, source, prompts, spans = array("i"), [0], [], [], []
        for index, conversation in enumerate(conversations):
            prompt = list(self._system[conversation.reasoning_effort])
            for message in conversation.messages:
                if message["role"] == "system":
                    system = message["content"]
                    if system not in developer:  # mostly it is the same for all
                        developer[system] = self._developer_block(system)
                    prompt += developer[system]
                    continue
                if message["role"] == "user":
                    prompt += self._user + next(encoded) + self._end
                    continue
                prompt += self._assistant
                ids.extend(prompt)
                begins = len(prompt) + len(self._analysis)
                if "thinking" in message:
                    thinking = next(encoded)
                    ids.extend(self._analysis + thinking + self._end + self._assistant)
                    spans.append((begins, begins + len(thinking)))
                else:
                    spans.append((begins, begins))
                final = self._final + next(encoded)
                ids.extend(final)
                ids.append(self._return)
                starts.append(len(ids))
                source.append(index)
                prompts.append(len(prompt))
                prompt += final + self._end
        return TokenRows(
            np.array(ids, np.int32),
            np.array(starts, np.int64),
            np.array(source, np.int64),
            np.array(prompts, np.int32),
            np.array(spans, np.int32).reshape(-1, 2),
        )

    def _developer_block(self, system: str) -> list[int]:
        return [*self._developer, *self._encode([f"# Instructions\n\n{system}\n\n"])[0], *self._end]


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    """The texts to encode, in the order in which ``token_rows`` takes them."""
    for message in messages:
        if "thinking" in message:
            yield message["thinking"]
        if message["role"] != "system":
            yield message["content"]


def checked_harmony(tokenizer: Any, *, current_date: str) -> Harmony:
    """Harmony as a tokenizer of transformers has it, once its chat template has been seen to say the same.

    Raises:
        StageError: the tokenizer lacks Harmony's special tokens, or its chat template writes something else.
    """
    backend = tokenizer.backend_tokenizer
    name, cure = getattr(tokenizer, "name_or_path", ""), "model.pretrained_model_name_or_path=<a gpt-oss>"
    special = [backend.token_to_id(token) for token in SPECIAL]
    if None in special:
        lacking = SPECIAL[special.index(None)]
        raise StageError(f"the tokenizer has no {lacking}: this is not a gpt-oss", where=name, cure=cure)
    if not tokenizer.chat_template:
        raise StageError("the tokenizer has no chat template", where=name, cure=cure)

    def template(messages: Sequence[Message], effort: str) -> str:
        return tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            chat_template=PINNED_CLOCK + tokenizer.chat_template,
            current_date=current_date,
            reasoning_effort=effort,
        )

    blocks = {
        effort: template(_PROBES[0], effort).partition("<|message|>")[2].partition("<|end|>")[0] for effort in EFFORTS
    }
    harmony = Harmony(TextEncoder(backend), special, blocks)
    for effort in EFFORTS:
        for messages in _PROBES:
            *_, whole = harmony.token_rows([Conversation(0, list(messages), effort, {})]).rows()
            if whole.tolist() != backend.encode(template(messages, effort), add_special_tokens=False).ids:
                raise StageError("the model's chat template does not write the Harmony format", where=name, cure=cure)
    return harmony


_PROBES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "1+1は？"}, {"role": "assistant", "thinking": "足す。", "content": "2です。"}),
    (
        {"role": "system", "content": "reasoning language: Japanese\n\nPersona"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "thinking": "b\n", "content": "c"},
        {"role": "user", "content": "d "},
        {"role": "assistant", "content": "e"},
    ),
)
"""Conversations with and without system message, thinking and an earlier turn."""
