"""Generated token ids to thinking and answer, as they come or all at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ftkit.serving.endpoint.requests import ModelError

CHANNELS = {"analysis": "thinking", "final": "output"}
EARLIER = r"<channel>(analysis|commentary)( [^<]*)?(<constrain>[^<]*)?<message><end><start>assistant"


class Completion(NamedTuple):
    """What a model generated, taken apart.

    Attributes:
        thinking: text of the analysis channel.
        output: text of the final channel; empty if that never came.
        ended: the model ended by itself, by a stop token.
        well_formed: Harmony from beginning to end: closed analyses or commentaries, one final part, ``<|return|>``.
    """

    thinking: str
    output: str
    ended: bool
    well_formed: bool


class Harmony:
    """Takes generated token ids apart into channels, with the special tokens found by name in the tokenizer.

    Args:
        tokenizer: of transformers.

    Raises:
        ModelError: it lacks Harmony's tokens.
    """

    STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
    """What ends an answer. Never ``<|end|>``: that ends the analysis, and the answer proper is still to come."""

    def __init__(self, tokenizer: Any):
        names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", *self.STOPS)
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        if lacking := [name for name, number in ids.items() if number in (None, tokenizer.unk_token_id)]:
            raise ModelError(f"the tokenizer has no {lacking[0]}: this is not a gpt-oss")
        self.stop_ids: list[int] = [ids[name] for name in self.STOPS]
        self._tokenizer = tokenizer
        self._names = {number: name.strip("<|>") for name, number in ids.items()}

    def parse(self, ids: Sequence[int]) -> Completion:
        """Take apart what was generated after ``<|start|>assistant``; never raises, whatever the tokens.

        Args:
            ids: generated token ids without the prompt; what follows a stop token, padding for instance, is ignored.
        """
        reader = Reader(self)
        for token in ids:
            reader.feed(token)
        return reader.completion()

    def special(self, token: int) -> str | None:
        """The name of a special token without its brackets; None of any other."""
        return self._names.get(token)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Reader:
    """Takes an answer apart while it is generated, token by token."""

    def __init__(self, harmony: Harmony):
        self._harmony = harmony
        self._name, self._text, self._undecoded = "", "", list[int]()  # of the part after the latest special token
        self._channel, self._shape = "", ""
        self._texts: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self._ended = self._closed = False

    def feed(self, token: int) -> list[tuple[str, str]]:
        """Take the next token.

        Returns:
            Text that is new, each with ``thinking`` or ``output``.
        """
        if self._ended:
            return []
        if (name := self._harmony.special(token)) is not None:
            new = self._add(self._harmony.decode(self._undecoded))
            self._close_part()
            self._name, self._ended = name, token in self._harmony.stop_ids
            return new + self._open_message()
        self._undecoded.append(token)
        text = self._harmony.decode(self._undecoded)
        return [] if text.endswith("\ufffd") else self._add(text)  # half a character

    def close(self) -> list[tuple[str, str]]:
        """The rest of the text, when no token follows; half a character at the end is left out."""
        if self._closed:
            return []
        self._closed = True
        new = self._add(self._harmony.decode(self._undecoded).rstrip("\ufffd"))
        self._close_part()
        return new

    def completion(self) -> Completion:
        """All that came; closes."""
        self.close()
        well_formed = re.fullmatch(rf"<>({EARLIER})*<channel>final<message><return>", self._shape) is not None
        thinking, output = ("\n\n".join(messages) for messages in self._texts.values())
        return Completion(thinking, output, self._ended, well_formed)

    def _add(self, text: str) -> list[tuple[str, str]]:
        self._undecoded = []
        self._text += text
        if self._name != "message" or self._channel not in CHANNELS or not text:
            return []
        self._texts[self._channel][-1] += text
        return [(CHANNELS[self._channel], text)]

    def _open_message(self) -> list[tuple[str, str]]:
        if self._name != "message" or self._channel not in CHANNELS:
            return []
        self._texts[self._channel].append("")
        return [(CHANNELS[self._channel], "\n\n")] if len(self._texts[self._channel]) > 1 else []

    def _close_part(self) -> None:
        self._shape += f"<{self._name}>" + ("" if self._name == "message" else self._text.replace("<", "?"))
        if self._name == "channel":
            self._channel = next(iter(self._text.split()), "")
        elif self._name in ("start", "end"):
            self._channel = ""
        self._text = ""
