"""How a model writes a chat as tokens and what its answers look like: Harmony, or the model's own chat template.

``renderer_of`` and ``parser_of`` find the format by the tokenizer. A family whose ``chat`` is ``harmony`` must have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    from ftkit.chat.harmony_render import TokenRows
    from ftkit.chat.messages import Conversation

HARMONY_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        name: of the function, without the namespace ``functions``.
        arguments: as the model wrote them, mostly JSON.
    """

    name: str
    arguments: str


class Completion(NamedTuple):
    """What a model generated, taken apart.

    Attributes:
        thinking: what it thought before it answered.
        output: its answer; empty if that never came.
        ended: the model ended by itself, by a stop token.
        well_formed: of its format from beginning to end.
        calls: of tools, those that are whole.
        rest: all other text, each with where it stood, in words.
    """

    thinking: str
    output: str
    ended: bool
    well_formed: bool
    calls: tuple[Call, ...] = ()
    rest: tuple[tuple[str, str], ...] = ()


class Reader(Protocol):
    """Takes one answer apart while it is generated."""

    @property
    def kind(self) -> str:
        """Where text stands now: in the ``thinking``, in the ``output``, or elsewhere, which is empty."""
        ...

    def feed(self, token: int) -> list[tuple[str, str]]:
        """Take the next token; returns text that is new, each with ``thinking`` or ``output``."""
        ...

    def close(self) -> list[tuple[str, str]]:
        """The rest of the text, when no token follows."""
        ...

    def completion(self) -> Completion:
        """All that came; closes."""
        ...


class Renderer(Protocol):
    """Writes conversations as token rows; it can be sent to another process."""

    @property
    def within_characters(self) -> list[int]:
        """Ids of the tokens that begin inside the bytes of a character."""
        ...

    def refusal(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot be written; None if it can."""
        ...

    def token_rows(self, conversations: Sequence[Conversation]) -> TokenRows:
        """One row for each assistant turn; the loss lies on that turn's thinking, answer and end alone."""
        ...


class Parser(Protocol):
    """Reads what a model generates."""

    stop_ids: list[int]
    """Ids that end an answer."""

    def clock(self, current_date: str) -> dict[str, str]:
        """Options of ``apply_chat_template`` with which the template's clock shows a date, YYYY-MM-DD."""
        ...

    def reader(self, prompt: Sequence[int] = ()) -> Reader:
        """Begin to read an answer to a prompt's token ids."""
        ...

    def parse(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> Completion:
        """Take a whole answer apart; never raises, whatever the tokens."""
        ...

    def parts(self, ids: np.ndarray, labels: np.ndarray) -> tuple[list[slice], list[slice]]:
        """Where the thinking and the answers lie in one document, int (length,) both; marks are neither."""
        ...


def writes_harmony(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers has Harmony's tokens."""
    ids = tokenizer.convert_tokens_to_ids(list(HARMONY_TOKENS))
    return all(number is not None and number != tokenizer.unk_token_id for number in ids)


def renderer_of(tokenizer: Any, *, current_date: str, must_be: str | None = None) -> Renderer:
    """What writes conversations for this tokenizer.

    Args:
        tokenizer: of transformers.
        current_date: YYYY-MM-DD, that templates with a clock get for today.
        must_be: ``harmony`` refuses any other format.

    Raises:
        StageError: the tokenizer has no usable chat template, or lacks Harmony's tokens and must have them.
    """
    if must_be == "harmony" or writes_harmony(tokenizer):
        from ftkit.chat.harmony_render import checked_harmony

        return checked_harmony(tokenizer, current_date=current_date)
    from ftkit.chat.template_render import TemplateRenderer

    return TemplateRenderer(tokenizer, current_date=current_date)


def parser_of(tokenizer: Any, *, must_be: str | None = None) -> Parser:
    """What reads the answers of a model with this tokenizer.

    Raises:
        ModelError: the tokenizer has no chat template, or lacks Harmony's tokens and must have them.
    """
    if must_be == "harmony" or writes_harmony(tokenizer):
        from ftkit.chat.harmony_parse import HarmonyParser

        return HarmonyParser(tokenizer)
    from ftkit.chat.template import TemplateParser

    return TemplateParser(tokenizer)
