"""Conversations to token rows: the model's chat template renders them; the loss lies on the assistant's turn alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

IGNORED = -100
"""Label of a token that carries no loss, as torch's cross entropy has it."""


@dataclass(frozen=True)
class TokenRow:
    """One training row: the conversation up to and including one assistant turn.

    Attributes:
        input_ids: token ids, (length,).
        prompt_length: tokens before the completion; the loss lies on all tokens from there.
    """

    input_ids: list[int]
    prompt_length: int

    @property
    def labels(self) -> list[int]:
        """(length,): ``IGNORED`` on the prompt, the token ids after it."""
        return [IGNORED] * self.prompt_length + self.input_ids[self.prompt_length :]


PINNED_CLOCK = "{%- macro strftime_now(_) -%}{{ current_date }}{%- endmacro -%}"
"""Put before a chat template, it takes the place of the template's own clock."""


class Renderer:
    """Renders messages by a tokenizer's chat template, with the date and the reasoning effort pinned.

    A completion runs from ``<|channel|>analysis`` to the final message's ``<|return|>``.
    """

    def __init__(self, tokenizer: Any, *, current_date: str, reasoning_effort: str):
        self._tokenizer = tokenizer
        self._options = {
            "tokenize": False,
            "chat_template": PINNED_CLOCK + tokenizer.chat_template,
            "current_date": current_date,
            "reasoning_effort": reasoning_effort,
        }

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """Text up to where the assistant takes over."""
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, **self._options)

    def token_rows(self, messages: list[dict[str, str]]) -> Iterator[TokenRow]:
        """One row for each assistant turn; earlier turns stand in its prompt without their thinking, as in a chat."""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.prompt(messages[:i])
            whole = self._tokenizer.apply_chat_template(messages[: i + 1], **self._options)
            if not whole.startswith(prompt):
                raise ValueError("the chat template renders a conversation differently with its answer than without")
            prompt_ids = self._encode(prompt)
            yield TokenRow(prompt_ids + self._encode(whole[len(prompt) :]), len(prompt_ids))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
