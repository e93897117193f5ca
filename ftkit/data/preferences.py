"""Two answers to one question: what a pair consists of, and why one is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.chat.format import Renderer
from ftkit.chat.messages import Conversation
from ftkit.data.refused import Refused

SIDES = ("chosen", "rejected")
"""Columns, and keys of ``dataset.columns``, with the better and the worse answer."""
REJECTED_IDS = "rejected_ids"
"""Column of the token rows with the worse answer's tokens, from the prompt's end on; ``input_ids`` have the better."""


def paired(chosen: Conversation, rejected: Conversation) -> Conversation:
    """The conversation with the better answer, which has the worse one beside it.

    Raises:
        Refused: they have no common prompt, or the answers are equal.
    """
    *before, answer = chosen.messages
    *other_before, other = rejected.messages
    if before != other_before:
        cure = "one prompt for both: the same messages up to the last answer, or dataset.columns.question=<its column>"
        raise Refused("chosen and rejected differ before their last answer", cure=cure)
    if answer == other:
        raise Refused("chosen and rejected are equal", cure="leave the row out: nothing can be learnt from it")
    return replace(chosen, rejected=other)


def other_side(conversation: Conversation) -> Conversation:
    """The same with the worse answer in place of the better one."""
    assert conversation.rejected is not None
    return replace(conversation, messages=[*conversation.messages[:-1], conversation.rejected], rejected=None)


def is_chat(value: Any, role: str) -> bool:
    """Whether a column holds messages, or their JSON text, and no text of an answer.

    Args:
        role: key of a message that says who speaks.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and role in m for m in value)
    return isinstance(value, list | dict)


def rejected_ids(conversations: Sequence[Conversation], renderer: Renderer) -> pa.Array:
    """List of int32: the worse answer's tokens of each pair, for ``REJECTED_IDS``."""
    rows = renderer.token_rows([other_side(conversation) for conversation in conversations])
    answers = [ids[length:] for ids, length in zip(rows.rows(), rows.prompt_length, strict=True)]
    starts = np.cumsum([0, *map(len, answers)], dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(starts), pa.array(np.concatenate([np.empty(0, np.int32), *answers]).astype(np.int32))
    )
