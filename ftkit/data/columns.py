"""Columns and keys that the settings name against those that the rows have: none is missed or left out in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ftkit.config.dataset import Dataset
from ftkit.config.overrides import nearest
from ftkit.data.preferences import SIDES
from ftkit.data.refused import Account
from ftkit.errors import StageError

ALWAYS = ("question", "answer", "chosen", "rejected", "messages")
"""Columns without which a row is refused."""
BELONGS = {
    "input": "input",
    "context": "input",
    "history": "history",
    "tools": "tools",
    "functions": "tools",
    "system": "persona",
    "system_prompt": "persona",
    "thinking": "thinking",
    "reasoning": "thinking",
    "reasoning_content": "thinking",
    **dict.fromkeys(
        ("thought", "thoughts", "think", "cot", "complex_cot", "chain_of_thought", "rationale", "reasoning_text"),
        "thinking",
    ),
    "reasoning_language": "reasoning_language",
    "reasoning_effort": "reasoning_effort",
}
"""Columns by what they mostly hold: the key that puts them to use."""
MARKS = ("label", "correct", "is_correct", "accepted", "desirable", "is_good", "train", "training", "keep")
"""Columns that may say that an answer is a bad one."""
OTHER_ANSWERS = ("score", "rating", "weight")
"""Columns that say how good answers are."""
NO_TEXT = ("images", "image", "audio", "audios", "video", "videos")
SHOWN = 8


def check_columns(account: Account, dataset: Dataset) -> None:
    """Stop where a setting names a column or a key that no row has.

    Raises:
        StageError: with the nearest name.
    """
    if not account.columns:
        return
    for key, name in dataset.columns:
        if name is None or key in ALWAYS or name.endswith("?") or name in account.columns:
            continue
        raise _missing(f"dataset.columns.{key}", "column", name, account.columns, dataset)
    name = dataset.turns.thinking
    if account.keys and not name.endswith("?") and name not in account.keys:
        raise _missing("dataset.turns.thinking", "key of a message", name, account.keys, dataset)


def _missing(setting: str, kind: str, name: str, there: set[str], dataset: Dataset) -> StageError:
    close = nearest(name, there)
    return StageError(
        f"no row has the {kind} {name!r}; there are {', '.join(sorted(there))}",
        where=f"{dataset.place}, {setting}",
        cure=f"{setting}={close}" if close else f"{setting}=<one of these>, or {setting}=null",
    )


def unused_lines(account: Account, rows: int) -> Iterator[str]:
    """A line for each kind of thing that rows hold and training does not use, the most frequent first."""
    plain: list[str] = []
    for name, count in account.unused.most_common():
        of = f"{name} ({count:,} of {rows:,} rows not empty)"
        if key := BELONGS.get(name.casefold()):
            yield f"not used: {of}; dataset.columns.{key}={name} puts it to use"
        elif name in MARKS:
            yield f"not used: {of}; dataset.columns.label={name} refuses the rows where it is false"
        elif name in SIDES:
            yield f"not used: {of}; method=dpo dataset=preference prefers one answer of a pair to the other"
        elif name in OTHER_ANSWERS:
            yield f"not used: {of}; every answer is trained as it stands"
        elif name in NO_TEXT:
            yield f"not used: {of}; the texts beside are trained without"
        else:
            plain.append(of)
    if plain:
        more = f", and {len(plain) - SHOWN:,} more" if len(plain) > SHOWN else ""
        yield f"not used: {', '.join(plain[:SHOWN])}{more}"
    if account.unused_keys:
        keys = [f"{key} ({count:,})" for key, count in account.unused_keys.most_common()]
        more = f", and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
        yield f"not used, of messages and tools: {', '.join(keys[:SHOWN])}{more}"
        for key in account.unused_keys:
            if BELONGS.get(key.casefold()) == "thinking":
                yield f"dataset.turns.thinking={key} takes that key for the thinking"


def remark_lines(account: Account) -> Iterator[str]:
    """What is to be said of rows that are kept."""
    for remark, count in account.remarks.most_common():
        yield f"{count:,} {'row' if count == 1 else 'rows'}: {remark}"
