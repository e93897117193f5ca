"""Generated token ids to thinking and answer, as they come or all at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ftkit.chat.format import Call, Completion
from ftkit.chat.messages import ModelError

PINNED_CLOCK = "{%- macro strftime_now(_) -%}{{ current_date }}{%- endmacro -%}\n"
"""Put before a chat template, takes the place of its clock."""
CHANNELS = {"analysis": "thinking", "final": "output"}
FUNCTIONS = "functions."
RECIPIENT = re.compile(r"(?:^|\s)to=(\S+)")
CHANNEL = re.compile(r"<channel>([^\s<]*)")


class HarmonyParser:
    """Takes generated token ids apart into channels, with the special tokens found by name in the tokenizer.

    Args:
        tokenizer: of transformers.

    Raises:
        ModelError: it lacks Harmony's tokens.
    """

    STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
    """What ends an answer. Never ``<|end|>``: that ends the analysis, and the answer proper is still to come."""

    def __init__(self, tokenizer: Any):
        names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", *self.STOPS)
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        if lacking := [name for name, number in ids.items() if number in (None, tokenizer.unk_token_id)]:
            raise ModelError(f"the tokenizer has no {lacking[0]}: this is not a gpt-oss")
        ids["<|constrain|>"] = tokenizer.convert_tokens_to_ids("<|constrain|>")
        self.stop_ids: list[int] = [ids[name] for name in self.STOPS]
        self._tokenizer, self._backend = tokenizer, tokenizer.backend_tokenizer
        self._names = {number: name.strip("<|>") for name, number in ids.items()}

    def clock(self, current_date: str) -> dict[str, str]:
        """The template with a macro in place of its clock: transformers 5.23 turns a function into text."""
        return {"chat_template": PINNED_CLOCK + self._tokenizer.chat_template, "current_date": current_date}

    def reader(self, prompt: Sequence[int] = ()) -> Reader:
        """Begin to read what is generated after ``<|start|>assistant``."""
        return Reader(self)

    def parts(self, ids: Any, labels: Any) -> tuple[list[slice], list[slice]]:
        """A message's part is its text and the token that ends it; the last message is the answer."""
        import numpy as np

        message, *ends = self._tokenizer.convert_tokens_to_ids(["<|message|>", "<|end|>", "<|return|>", "<|call|>"])
        begins = 1 + np.flatnonzero((ids == message) & (labels != -100))
        stops = 1 + np.flatnonzero(np.isin(ids, ends))
        parts = [slice(int(begin), int(min(stops[stops > begin], default=len(ids)))) for begin in begins]
        return parts[:-1], parts[-1:]

    def parse(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> Completion:
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
        """By the ``tokenizers`` library itself: around it transformers takes six times as long for a single token."""
        return self._backend.decode(ids, skip_special_tokens=False)


class Reader:
    """Takes an answer apart while it is generated, token by token."""

    def __init__(self, harmony: HarmonyParser):
        self._harmony = harmony
        self._name, self._text, self._undecoded = "", "", list[int]()  # of the part after the latest special token
        self._channel, self._recipient, self._shape = "", "", ""
        self._calls, self._rest = list[Call](), list[tuple[str, str]]()
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
            self._close_part(cut_off=False)
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
        self._close_part(cut_off=not self._ended)
        return new

    def completion(self) -> Completion:
        """All that came; closes."""
        self.close()
        well_formed = _is_well_formed(self._shape)
        thinking, output = ("\n\n".join(messages) for messages in self._texts.values())
        return Completion(thinking, output, self._ended, well_formed, tuple(self._calls), tuple(self._rest))

    @property
    def kind(self) -> str:
        """``thinking`` or ``output`` within a message of these; empty elsewhere, and within a call of a function."""
        if self._name != "message" or self._recipient.startswith(FUNCTIONS):
            return ""
        return CHANNELS.get(self._channel, "")

    def _add(self, text: str) -> list[tuple[str, str]]:
        self._undecoded = []
        self._text += text
        if not text or not (kind := self.kind):
            return []
        self._texts[self._channel][-1] += text
        return [(kind, text)]

    def _open_message(self) -> list[tuple[str, str]]:
        if not (kind := self.kind):
            return []
        self._texts[self._channel].append("")
        return [(kind, "\n\n")] if len(self._texts[self._channel]) > 1 else []

    def _close_part(self, *, cut_off: bool) -> None:
        text = self._text
        self._shape += f"<{self._name}>" + ("" if self._name == "message" else text.replace("<", "?"))
        self._text = ""
        if self._name == "message":
            self._keep(text, cut_off=cut_off)
            return
        if self._name == "channel":
            self._channel = next(iter(text.split()), "")
        elif self._name in ("start", "end"):
            self._channel = self._recipient = ""
        if found := RECIPIENT.search(text):
            self._recipient = found.group(1)
        elif self._name in ("", "end") and text.strip():
            self._rest.append(("outside the channels", text))

    def _keep(self, text: str, *, cut_off: bool) -> None:
        """What a message says that is neither thinking nor output."""
        if self.kind or not (text or self._recipient):
            return
        name = self._recipient.removeprefix(FUNCTIONS)
        if name and not cut_off:
            self._calls.append(Call(name, text))
        elif name:
            self._rest.append((f"the call of {name} that had begun", text))
        else:
            self._rest.append((f"in the channel {self._channel or '(none)'}", text))


def _is_well_formed(shape: str) -> bool:
    """Whether the special tokens, with the text outside of messages, are whole messages that end in the final one."""
    first, *later = shape.split("<message>")
    *between, end = later or [""]
    headers = [first.removeprefix("<>"), *(text.removeprefix("<end><start>") for text in between)]
    whole = end == "<return>" and all(text.startswith("<end><start>") for text in between)
    channels = [_channel_of(header, role=number > 0) for number, header in enumerate(headers)]
    return whole and channels[-1] == "final" and channels.count("final") == 1 and None not in channels


def _channel_of(header: str, *, role: bool) -> str | None:
    """The channel of a message, empty if it has none; None where openai-harmony cannot read its header.

    Besides role and channel it takes one word, the recipient, or two, the recipient and the type of the content.
    """
    found = CHANNEL.search(header)
    if found and not found.group(1):
        return None
    rest = (header[: found.start()] + header[found.end() :] if found else header).replace("<constrain>", " <constrain>")
    words = re.findall(r"[^ \t\n\r\f]+", rest.strip())
    if role and words[:1] != ["assistant"]:
        return None
    words = words[1:] if role else words
    readable = len(words) < 2 or (len(words) == 2 and not words[1].startswith("to="))
    return (found.group(1) if found else "") if readable else None
