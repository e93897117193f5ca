"""A model's own chat template: what it puts around thinking and answer, and how generated tokens are read back.

Thinking stands in ``<think>…</think>`` before the answer. A template that writes thinking itself (Qwen3's does, from
``reasoning_content``) says how; for any other the form is ``<think>\\n…\\n</think>\\n\\n``, in the answer's text. A
template whose generation prompt opens the block already (R1's way) gets the rest of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ftkit.chat.format import Completion
from ftkit.chat.messages import ModelError

OPEN, CLOSE = "<think>", "</think>"
QUESTION, THINKING, ANSWER = "ftkitquestion", "ftkitthinking", "ftkitanswer"
"""Texts that no template changes, to see where it puts them."""


class Forms(NamedTuple):
    """What a template puts around an assistant's texts.

    Attributes:
        opening, closing: around the thinking, from where the generation prompt ends.
        without: before the answer of a turn without thinking.
        end: token that ends a turn.
        opens: whether the generation prompt ends with ``<think>`` already.
    """

    opening: str
    closing: str
    without: str
    end: str
    opens: bool


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        current_date: YYYY-MM-DD that its clock shows; None: today.

    Raises:
        ModelError: there is none, or it fails on a question and an answer.
    """

    def __init__(self, tokenizer: Any, current_date: str | None = None):
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template")
        self.tokenizer = tokenizer
        self._options = pinned_clock(tokenizer.chat_template, current_date) if current_date else {}
        try:
            self.forms = self._forms()
        except Exception as error:  # jinja2 and templates raise what they like
            raise ModelError(f"the chat template fails on a question with its answer: {error}") from error

    def text(
        self, messages: Sequence[dict[str, Any]], *, prompt: bool, effort: str = "medium", tools: Sequence[Any] = ()
    ) -> str:
        """A chat as the template writes it; ``prompt`` ends it where the assistant takes over."""
        functions = [{"type": "function", "function": tool} for tool in tools]
        return self.tokenizer.apply_chat_template(
            list(messages),
            tools=functions or None,
            tokenize=False,
            add_generation_prompt=prompt,
            reasoning_effort=effort,
            **self._options,
        )

    def turn(self, thinking: str | None, answer: str) -> tuple[str, int, int]:
        """What the model is to generate, without the token that ends it, and where the thinking lies in it."""
        forms = self.forms
        if thinking is None:
            return forms.without + answer, 0, 0
        begins = len(forms.opening)
        return f"{forms.opening}{thinking}{forms.closing}{answer}", begins, begins + len(thinking)

    def _forms(self) -> Forms:
        user = {"role": "user", "content": QUESTION}
        prompt = self.text([user], prompt=True)
        plain = self.text([user, {"role": "assistant", "content": ANSWER}], prompt=False)
        if QUESTION not in prompt or ANSWER not in plain:
            raise ValueError("it leaves one of them out")
        thought = {"role": "assistant", "reasoning_content": THINKING, "content": ANSWER}
        whole = self.text([user, thought], prompt=False)
        end = self._end_of_turn(plain.rpartition(ANSWER)[2])
        opens = prompt.rstrip().endswith(OPEN)
        native = re.fullmatch(
            rf"(?P<opening>.*?){THINKING}(?P<closing>.*?){ANSWER}.*", whole.removeprefix(prompt), re.DOTALL
        )
        if native and whole.startswith(prompt):
            without = plain.removeprefix(prompt).partition(ANSWER)[0] if plain.startswith(prompt) else ""
            return Forms(native["opening"], native["closing"], without, end, opens)
        opening, closing = ("" if opens else f"{OPEN}\n"), f"\n{CLOSE}\n\n"
        return Forms(opening, closing, closing.lstrip("\n") if opens else "", end, opens)

    def _end_of_turn(self, after: str) -> str:
        """The special token that follows an answer, or the one that ends any text."""
        special = sorted(
            (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special), key=after.find
        )
        found = next((token for token in special if token in after), self.tokenizer.eos_token)
        if not found:
            raise ModelError("no special token ends an answer in the chat template, and the tokenizer has no eos_token")
        return found


def pinned_clock(template: str, current_date: str) -> dict[str, str]:
    """Options of ``apply_chat_template`` with which a template's clock, if it has one, shows that date.

    The clock becomes a macro, which knows each format that the template asks for.
    """
    from datetime import date

    if "strftime_now" not in template:
        return {}
    day = date.fromisoformat(current_date)
    formats = sorted(set(re.findall(r"strftime_now\(\s*['\"]([^'\"]*)['\"]", template)))
    cases = "".join(
        f"{{%- {'if' if i == 0 else 'elif'} f == {name!r} -%}}{day.strftime(name)}" for i, name in enumerate(formats)
    )
    body = f"{cases}{{%- else -%}}{current_date}{{%- endif -%}}" if formats else current_date
    return {"chat_template": f"{{%- macro strftime_now(f) -%}}{body}{{%- endmacro -%}}\n{template}"}


class TemplateParser:
    """Reads the answers of a model by its chat template.

    Args:
        tokenizer: of transformers.

    Raises:
        ModelError: as ``Template``.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._template = tokenizer, Template(tokenizer)
        ends = [self._template.forms.end, tokenizer.eos_token]
        ids = [tokenizer.convert_tokens_to_ids(token) for token in dict.fromkeys(ends) if token]
        self.stop_ids: list[int] = list(dict.fromkeys(ids))
        self._special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def clock(self, current_date: str) -> dict[str, str]:
        return pinned_clock(self._tokenizer.chat_template, current_date)

    def reader(self, prompt: Sequence[int] = ()) -> TemplateReader:
        """Begin to read an answer; a prompt that ends inside ``<think>`` begins with thinking."""
        thinks = self.decode(list(prompt)[-16:]).rstrip().endswith(OPEN) if prompt else self._template.forms.opens
        return TemplateReader(self, thinks=thinks)

    def parse(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> Completion:
        reader = self.reader(prompt)
        for token in ids:
            reader.feed(token)
        return reader.completion()

    def parts(self, ids: Any, labels: Any) -> tuple[list[slice], list[slice]]:
        """The thinking reaches to ``</think>``; what follows it, the end of the turn included, is the answer."""
        import numpy as np

        with_loss = np.flatnonzero(labels != -100)
        if not len(with_loss):
            return [], []
        begin, end = int(with_loss[0]), int(with_loss[-1]) + 1
        text = self.decode(ids[begin:end].tolist())
        if CLOSE not in text:
            return [], [slice(begin, end)]
        low, high = begin, end
        while low < high:  # the first token with which </think> is complete
            middle = (low + high) // 2
            if CLOSE in self.decode(ids[begin : middle + 1].tolist()):
                high = middle
            else:
                low = middle + 1
        return [slice(begin, low + 1)], [slice(low + 1, end)]

    def is_special(self, token: int) -> bool:
        return token in self._special

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TemplateReader:
    """Takes an answer apart while it is generated, token by token."""

    def __init__(self, parser: TemplateParser, *, thinks: bool):
        self._parser = parser
        self._ids: list[int] = []
        self._decoded, self._read = 0, 0  # tokens up to which text has been taken, and from which it is decoded
        self._pending = ""
        self._state = "thinking" if thinks else "start"
        self._texts = {"thinking": "", "output": ""}
        self._ended = self._closed = self._stray = False

    @property
    def kind(self) -> str:
        return "" if self._ended or self._state == "start" else self._state

    def feed(self, token: int) -> list[tuple[str, str]]:
        if self._ended:
            return []
        if token in self._parser.stop_ids:
            self._ended = True
            return []
        self._stray |= self._parser.is_special(token)
        self._ids.append(token)
        text = self._parser.decode(self._ids[self._read :])
        if text.endswith("\ufffd"):  # half a character
            return []
        return self._take(self._new(text))

    def close(self) -> list[tuple[str, str]]:
        """The rest of the text, when no token follows; half a character at the end is left out."""
        if self._closed:
            return []
        self._closed = True
        rest = self._new(self._parser.decode(self._ids[self._read :])).rstrip("\ufffd") if self._ids else ""
        return self._take(rest, last=True)

    def completion(self) -> Completion:
        self.close()
        thinking, output = self._texts["thinking"].strip("\n"), self._texts["output"]
        whole = self._state == "output" and not self._stray and OPEN not in output and CLOSE not in output
        return Completion(thinking, output, self._ended, self._ended and whole and bool(output.strip()))

    def _new(self, text: str) -> str:
        """What the newest tokens add; a few before them are decoded along, for some tokens begin with a blank."""
        known = len(self._parser.decode(self._ids[self._read : self._decoded])) if self._decoded > self._read else 0
        self._read, self._decoded = self._decoded, len(self._ids)
        return text[known:]

    def _take(self, text: str, *, last: bool = False) -> list[tuple[str, str]]:
        self._pending += text
        pieces: list[tuple[str, str]] = []
        if self._state == "start":
            begun = self._pending.lstrip()
            if begun.startswith(OPEN):
                self._pending, self._state = begun.removeprefix(OPEN), "thinking"
            elif last or not OPEN.startswith(begun):
                self._state = "output"
        if self._state == "thinking":
            before, found, after = self._pending.partition(CLOSE)
            if found:
                pieces.append(("thinking", before.rstrip("\n")))
                self._pending, self._state = after, "output"
            else:
                sure = len(self._pending) if last else max(0, len(self._pending) - len(CLOSE) - 1)
                pieces.append(("thinking", self._pending[:sure]))
                self._pending = self._pending[sure:]
        if self._state == "output":
            if not self._texts["output"]:
                self._pending = self._pending.lstrip("\n")
            pieces.append(("output", self._pending))
            self._pending = ""
        new = []
        for kind, piece in pieces:
            piece = piece.lstrip("\n") if kind == "thinking" and not self._texts["thinking"] else piece
            if piece:
                self._texts[kind] += piece
                new.append((kind, piece))
        return new
