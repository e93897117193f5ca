"""Conversations to token rows in the Harmony format; the loss lies on the assistant's turn alone.

A turn is an answer, or a call of a tool: thinking on the analysis channel, what is said before the call and the call
itself on the commentary channel, ended by ``<|call|>``. Every text is tokenised apart from the special tokens around
it, so none can turn into one. ``checked_harmony`` holds the result against the model's own chat template.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ftkit.chat.harmony_parse import PINNED_CLOCK
from ftkit.chat.messages import EFFORTS, Conversation, Message, calls_of, texts_of
from ftkit.chat.template_limits import LARGEST, check_template, rendering
from ftkit.chat.tokenization import TextEncoder
from ftkit.chat.tool_namespace import NAMESPACE, tool_namespace
from ftkit.errors import StageError

IGNORED = -100
"""Label of a token that carries no loss, as torch's cross entropy has it."""

SPECIAL = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|constrain|>", "<|call|>")


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


class _Turn(NamedTuple):
    """What the assistant writes after ``<|start|>assistant``, as token ids.

    Attributes:
        thinking: the analysis, up to where the assistant begins anew; empty when there is none.
        said: the answer, or calls and what stands before them, without the token that ends the turn.
        calls: it ends with a call.
    """

    thinking: list[int]
    said: list[int]
    calls: bool


class HarmonyRenderer:
    """Writes conversations as Harmony tokens. It can be sent to another process.

    Args:
        encode: texts to token ids.
        special: ids of ``SPECIAL``.
        system_blocks: for each reasoning effort, without and with tools, the text of the system block, between
            ``<|message|>`` and ``<|end|>``.
    """

    def __init__(self, encode: TextEncoder, special: Sequence[int], system_blocks: Mapping[tuple[str, bool], str]):
        self._encode = encode
        start, message, channel, end, self._return, constrain, self._call = special
        words = ("system", "developer", "user", "assistant", "analysis", "commentary", "final", "json", " ")
        word = {w: encode([w])[0] for w in words}
        self._start, self._end = [start], [end]
        self._user = [start, *word["user"], message]
        self._assistant = [start, *word["assistant"]]
        self._analysis = [channel, *word["analysis"], message]
        self._commentary = [channel, *word["commentary"], message]
        self._json = [channel, *word["commentary"], *word[" "], constrain, *word["json"], message]
        self._final = [channel, *word["final"], message]
        self._developer = [start, *word["developer"], message]
        self._system = {
            of: [start, *word["system"], message, *self._encode([text])[0], end] for of, text in system_blocks.items()
        }

    @property
    def within_characters(self) -> list[int]:
        """Ids of the tokens that begin inside the bytes of a character."""
        return self._encode.within_characters

    def refusal(self, conversation: Conversation) -> str | None:
        """None: every text is tokenised apart from the special tokens around it."""
        return None

    def token_rows(self, conversations: Sequence[Conversation]) -> TokenRows:
        """One row for each turn of the assistant that is trained.

        Earlier answers stand in its prompt without their thinking; the thinking of calls stays until the answer is
        there, as the model sees it when it goes on.
        """
        encoded = iter(self._encode([text for c in conversations for text in _texts(c.messages)]))
        developer: dict[str, list[int]] = {}
        ids, starts, source, prompts, spans = array("i"), [0], [], [], []
        for index, conversation in enumerate(conversations):
            prompt = self._opening(conversation, developer)
            open_thinking: list[slice] = []
            for message in conversation.messages:
                if message["role"] == "system":
                    continue
                if message["role"] != "assistant":
                    prompt += self._heard(message, next(encoded))
                    continue
                turn = self._turn(message, encoded)
                prompt += self._assistant
                if message.get("train", True):
                    end = self._call if turn.calls else self._return
                    ids += array("i", [*prompt, *turn.thinking, *turn.said, end])
                    begins = len(prompt) + len(self._analysis)
                    ends = len(prompt) + len(turn.thinking) - len(self._end + self._assistant)
                    spans.append((begins, ends if turn.thinking else begins))
                    starts.append(len(ids))
                    source.append(index)
                    prompts.append(len(prompt))
                self._remember(prompt, turn, open_thinking)
        return TokenRows(
            np.array(ids, np.int32),
            np.array(starts, np.int64),
            np.array(source, np.int64),
            np.array(prompts, np.int32),
            np.array(spans, np.int32).reshape(-1, 2),
        )

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation, up to where the assistant takes over."""
        asked = {"role": "assistant", "content": ""}
        rows = self.token_rows([replace(conversation, messages=[*conversation.messages, asked])])
        return rows.input_ids[rows.starts[-2] :][: rows.prompt_length[-1]].tolist()

    def _opening(self, conversation: Conversation, developer: dict[str, list[int]]) -> list[int]:
        """System and developer block.

        Args:
            developer: blocks by their texts, which mostly are the same for all conversations.
        """
        first = conversation.messages[:1]
        text = f"# Instructions\n\n{first[0]['content']}\n\n" if first and first[0]["role"] == "system" else ""
        if tools := conversation.tools:
            text += tool_namespace(tools)
        opening = list(self._system[conversation.reasoning_effort, bool(tools)])
        if text:
            if text not in developer:
                developer[text] = [*self._developer, *self._encode([text])[0], *self._end]
            opening += developer[text]
        return opening

    def _heard(self, message: Message, content: list[int]) -> list[int]:
        """A user's message, or the result of a tool."""
        if message["role"] == "user":
            return self._user + content + self._end
        author = self._encode([f"{NAMESPACE}.{message['name']} to=assistant"])[0]
        return self._start + author + self._commentary + content + self._end

    def _turn(self, message: Message, encoded: Iterator[list[int]]) -> _Turn:
        again = self._end + self._assistant
        thinking = self._analysis + next(encoded) + again if "thinking" in message else []
        content = next(encoded)
        if not (calls := calls_of(message)):
            return _Turn(thinking, self._final + content, calls=False)
        said = self._commentary + content + again if content else []
        for i, call in enumerate(calls):
            recipient = self._encode([f" to={NAMESPACE}.{call['function']['name']}"])[0]
            between = [self._call, *self._assistant] if i else []
            said += between + recipient + self._json + next(encoded)
        return _Turn(thinking, said, calls=True)

    def _remember(self, prompt: list[int], turn: _Turn, open_thinking: list[slice]) -> None:
        """Add a turn to the prompt of what follows; ``open_thinking`` says where thinking of calls stands there."""
        if turn.calls:
            if turn.thinking:
                open_thinking.append(slice(len(prompt), len(prompt) + len(turn.thinking)))
            prompt += [*turn.thinking, *turn.said, self._call]
            return
        for place in reversed(open_thinking):
            del prompt[place]
        open_thinking.clear()
        prompt += turn.said + self._end


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    """The texts to encode, in the order in which ``token_rows`` takes them."""
    for message in messages:
        if message["role"] != "system":
            yield from texts_of(message)


def checked_harmony(tokenizer: Any, *, current_date: str) -> HarmonyRenderer:
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
    check_template(tokenizer.chat_template, name, cure)

    def template(messages: Sequence[Message], effort: str, tools: Sequence[dict[str, Any]]) -> str:
        with rendering(name, cure):
            return tokenizer.apply_chat_template(
                list(messages),
                tools=[{"type": "function", "function": tool} for tool in tools] or None,
                tokenize=False,
                chat_template=PINNED_CLOCK + tokenizer.chat_template,
                current_date=current_date,
                reasoning_effort=effort,
            )[:LARGEST]

    blocks = {
        (effort, bool(tools)): template(_PROBES[0], effort, tools).partition("<|message|>")[2].partition("<|end|>")[0]
        for effort in EFFORTS
        for tools in ([], [_TOOL])
    }
    harmony = HarmonyRenderer(TextEncoder(backend), special, blocks)
    for effort, tools in blocks:
        for messages in _PROBES:
            given = [_TOOL] if tools else []
            *_, whole = harmony.token_rows([Conversation(0, list(messages), effort, {}, given)]).rows()
            if whole.tolist() != backend.encode(template(messages, effort, given), add_special_tokens=False).ids:
                raise StageError("the model's chat template does not write the Harmony format", where=name, cure=cure)
    return harmony


_TOOL: dict[str, Any] = {
    "name": "f",
    "description": "g",
    "parameters": {
        "type": "object",
        "properties": {"h": {"type": "string", "description": "i"}, "j": {"type": "number"}},
        "required": ["h"],
    },
}
"""A tool that the chat template and openai-harmony write alike."""

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
