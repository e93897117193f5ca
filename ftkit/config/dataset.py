"""The group ``dataset``: where rows are, how they are laid out, how they are split, and which sources are mixed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftkit.config.fields import DATE, AssetName, Group, PositiveInt, SourceName


class Columns(Group):
    """Where a row's parts stand. Give question and answer, or messages. A name with a ? behind it may be missing."""

    question: str | None
    """Column with the question: text, or a list of messages that ends with the user's."""
    input: str | None
    """Column with text that belongs to the question, as alpaca's input; it is put behind it, after a blank line."""
    history: str | None
    """Column with earlier turns, pairs of question and answer or messages: context that is never trained."""
    answer: str | None
    """Column with the answer: text, or a list of messages; ``<think>…</think>`` may stand before the final answer."""
    thinking: str | None
    """Column with the thinking, when the answer does not carry it in ``<think>…</think>``."""
    chosen: str | None
    """Column with the better of two answers, or a whole chat that ends with it; with rejected, instead of answer."""
    rejected: str | None
    """Column with the worse one, laid out as chosen."""
    messages: str | None
    """Column with a whole chat, laid out as dataset.turns says; instead of question and answer."""
    tools: str | None
    """Column with the functions that may be called, a list in JSON Schema or its JSON text."""
    label: str | None
    """Column that marks answers as good or bad, as KTO's: rows where it is false are refused, as tuning would train bad
    answers as good. With a ? behind it, values that are not true or false are taken for something else."""
    reasoning_effort: str | None
    """Column that sets dataset.reasoning_effort for each row; where a row has none, the setting holds."""
    reasoning_language: str | None
    """Column that sets dataset.reasoning_language for each row; where a row has none, the setting holds."""
    persona: str | None
    """Column that sets dataset.persona for each row; where a row has none, the setting holds."""


class Turns(Group):
    """How one message of a chat is laid out."""

    role: str
    """Key of the message that says who speaks."""
    content: str
    """Key of its text."""
    thinking: str
    """Key of an assistant's thinking, beside thinking, reasoning_content and reasoning, which are always taken; without
    any, ``<think>…</think>`` is looked for in the text."""
    roles: dict[str, Literal["system", "developer", "user", "assistant", "tool", "call"]]
    """Names of roles in the data and what they mean, in any case; call: an assistant that calls a tool."""
    consecutive: Literal["refuse", "join"]
    """Two messages of one role in a row: refuse the row, or join them by a blank line."""


class Rows(Group):
    """What may differ from one source of rows to the next."""

    split: str
    """Split to train on: of a hub data set, or of a folder with files named train, validation and test."""
    subset: str | None
    """Subset (configuration) of a hub data set that has several; null takes its only or default one."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the newest."""
    validation: str | None
    """Your own held-out rows, beside which dataset.heldout takes none: file, folder or pattern; on the hub a split."""
    encoding: str | None
    """Encoding of text files, cp932 for instance; null recognises UTF-8, UTF-16, CP932, EUC-JP and ISO-2022-JP."""
    columns: Columns
    turns: Turns
    reasoning_language: str | None
    """Written as ``reasoning language: …`` at the top of the system message; null leaves the line out."""
    persona: str | None
    """Second paragraph of the system message; null leaves it out."""
    reasoning_effort: Literal["low", "medium", "high"]
    """The effort that Harmony's system block asks for."""
    thinking: Literal["required", "optional"]
    """required refuses an answer without thinking; optional trains such a row on its final answer alone."""
    thinking_tag: Annotated[str, Field(pattern=r"[A-Za-z][A-Za-z0-9_:\-]*")]
    """Tag around the thinking in an answer: think for ``<think>…</think>``."""
    loss: Literal["all", "last"]
    """Which turns of a chat are trained: all answers and calls, or the last: what follows the last user message."""
    special_tokens: Literal["refuse", "neutralise"]
    """Rows with text such as <|end|>: refuse them, or keep them with that text as plain characters."""
    heldout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the rows kept out of training, chosen by a hash of the question."""
    max_rows: PositiveInt | None
    """Read only the first rows; null reads all."""


class Source(Rows):
    """One of the sources of ``dataset.mix``; keys that it does not set are its option's, or those of ``dataset``."""

    path: str
    """As dataset.path."""
    option: str | None
    """Option of the group dataset that the layout is taken from."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Share of its rows, relative to the other sources with a weight."""
    rows: PositiveInt | None
    """Rows to take of it."""


class Dataset(Rows):
    name: AssetName
    """Short name, shown by ``plan``."""
    path: str | None
    """Hub id; a file (JSON, CSV, TSV, Excel, parquet, Arrow; docs/data.md lists the kinds); a folder or a pattern
    (\"data/*.jsonl\") of them; or ``package:<file>`` for data that ships with ftkit; null beside
    dataset.mix."""
    mix: dict[SourceName, Source] | None
    """Several sources in place of one: {japanese: {path: a.jsonl, weight: 3}, general: {path: b.jsonl, rows: 500}}.
    Each may set its layout and most other keys of this group itself, or take an option's; docs/data.md tells more."""
    mix_seed: Annotated[int, Field(ge=0)]
    """Seed of which rows a weight or a count takes."""
    asset_name: AssetName
    """Name of the data asset, and of the parquet and JSONL files in it."""
    current_date: Annotated[str, Field(pattern=DATE)]
    """Date that Harmony's system block gives; pinned, so that the same rows give the same tokens on any day."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)]
    """Likeness (Jaccard, on runs of 5 characters) from which two questions share a side; 1 joins equal ones only."""
    overlength: Literal["drop", "error", "truncate-thinking"]
    """Rows longer than sft.max_length: leave out and count, stop, or cut the end of the thinking, never the answer."""
    num_proc: PositiveInt | None
    """Processes that prepare rows; null takes one a core. The rows are the same with any number."""

    @property
    def sources(self) -> dict[str, Dataset]:
        """The settings of each source by its name; of a single one, whose name is empty, these."""
        if self.mix is None:
            return {"": self}
        own = ("path", *Rows.model_fields)
        return {
            name: self.model_copy(update={"mix": None} | {key: getattr(source, key) for key in own})
            for name, source in self.mix.items()
        }

    @property
    def place(self) -> str:
        """``path`` of a single source."""
        assert self.path is not None
        return self.path

    @property
    def places(self) -> str:
        """The paths of all sources, for the user."""
        return ", ".join(source.place for source in self.sources.values())

    @property
    def holds_out(self) -> bool:
        """Whether some of the rows are to be kept out of training by lot."""
        return any(source.heldout for source in self.sources.values())


def key_of_source(name: str) -> str:
    """The dotted key that the settings of a source stand below."""
    return f"dataset.mix.{name}" if name else "dataset"
