"""Chunks of raw rows to parts on disk, by several processes, in order; memory hardly grows with the rows.

A part holds the conversations and token rows of one chunk; ``assembly`` joins the parts once the split is known.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from ftkit.chat.format import Renderer
from ftkit.chat.harmony_render import TokenRows
from ftkit.chat.messages import Conversation
from ftkit.config.dataset import Dataset
from ftkit.data.conversations import Converter
from ftkit.data.languages import languages
from ftkit.data.preferences import REJECTED_IDS, other_side, rejected_ids
from ftkit.data.readers import Chunk
from ftkit.data.refused import Account, Refused
from ftkit.data.splits import Keys, keys
from ftkit.errors import StageError
from ftkit.processes import usable_cores

ALONE = 4
"""So many chunks are prepared without starting other processes."""
IN_FLIGHT = 3
"""Chunks that wait for each process."""

CALL = pa.struct([("type", pa.string()), ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())]))])
MESSAGE = pa.struct(
    [
        *((name, pa.string()) for name in ("role", "content", "thinking")),
        ("tool_calls", pa.list_(CALL)),
        ("name", pa.string()),
        ("train", pa.bool_()),
    ]
)
TOOLS = "tools"
"""Column with the JSON text of a conversation's tools, if any row has some."""
SOURCE = "source"
"""Column with the name of a row's source in ``dataset.mix``, if there are several."""
REJECTED = "rejected"
"""Column with a pair's worse answer; ``messages`` end with the better one."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to prepare chunks.

    Attributes:
        dataset: its settings.
        renderer: writes the tokens.
        folder: where parts go.
    """

    dataset: Dataset
    renderer: Renderer
    folder: Path


@dataclass(frozen=True)
class Part:
    """One prepared chunk.

    Attributes:
        conversations: Arrow file of ``row``, ``messages``, ``tail`` (its JSON text from the messages on), and the tags.
        tokens: Arrow file of ``input_ids``, ``prompt_length``, ``thinking_start``, ``thinking_end``.
        rejected: JSONL file of the refused rows.
        rows: int64 (conversations,): numbers of the source rows.
        keys: what the split needs of the questions.
        lengths: int32 (token rows, 3): tokens, those of the prompt, those of the thinking's text.
        of: int64 (token rows,): index of each token row's conversation.
        refused: how many rows were refused for which reason.
        languages: how many token rows have their ``thinking`` and their ``answer`` in which language.
        neutralised: conversations that hold the text of special tokens.
        tags: names of the other columns, as ``renamed`` has them.
        worse: int32 (token rows,): of pairs, tokens of the prompt with the worse answer; else empty.
        validation: whether the rows are the user's own held-out ones.
        digests: uint64 (token rows,): equal for equal token rows.
        account: what the rows carry beyond what is trained.
        largest: the largest id of a token, and in which row it is.
        cures: what to do about refused rows, by the reason.
        source: name of the source in ``dataset.mix``; empty for a single one.
    """

    conversations: Path
    tokens: Path
    rejected: Path
    rows: np.ndarray
    keys: Keys
    lengths: np.ndarray
    of: np.ndarray
    refused: Counter[str]
    languages: dict[str, Counter[str]]
    neutralised: int
    tags: list[str]
    digests: np.ndarray
    account: Account
    largest: tuple[int, int]
    worse: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    validation: bool = False
    cures: dict[str, str] = field(default_factory=dict)
    source: str = ""


def prepare(chunks: Iterable[Chunk], work: Work, processes: int | None) -> Iterator[Part]:
    """Prepare chunks, in order.

    Args:
        processes: that share the work; None takes one a core. Few chunks are prepared in this process.

    Raises:
        StageError: a worker was killed, or the disk is full.
    """
    numbered = enumerate(chunks)
    few = list(islice(numbered, ALONE + 1))
    processes = processes or usable_cores()
    if len(few) <= ALONE or processes == 1:
        worker = Worker(work)
        yield from (worker.part(number, chunk) for number, chunk in chain(few, numbered))
    else:
        yield from _in_processes(chain(few, numbered), work, processes)


def _in_processes(numbered: Iterable[tuple[int, Chunk]], work: Work, processes: int) -> Iterator[Part]:
    """Start processes afresh rather than fork: the threads of Arrow and of the tokenizer would not survive that.

    They read their work from a file: while it were sent through a pipe, a process that dies would hang this one.
    """
    file = work.folder / "work.pickle"
    file.write_bytes(pickle.dumps(work))
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (file,))
    waiting: deque[Future[Part]] = deque()
    try:
        for number, chunk in numbered:
            with _ctrl_c_held_back():
                waiting.append(pool.submit(_part, number, chunk))
            if len(waiting) >= IN_FLIGHT * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise StageError(
            "a process that prepared rows was killed, most likely for want of memory",
            cure="dataset.num_proc=1, or more memory",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes started in the block never see a Ctrl-C, which reaches the whole group; this one sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where they ignore it as soon as they are up
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker | None = None


def _start(work: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    _worker = Worker(pickle.loads(work.read_bytes()))


def _part(number: int, chunk: Chunk) -> Part:
    assert _worker is not None
    return _worker.part(number, chunk)


class Worker:
    """Prepares chunks in one process."""

    def __init__(self, work: Work):
        self._sources = work.dataset.sources
        self._near_duplicates = work.dataset.near_duplicates < 1
        self._folder = work.folder
        self._renderer = work.renderer

    def part(self, number: int, chunk: Chunk) -> Part:
        """Convert, tokenise and write one chunk."""
        files = [self._folder / f"{number:06}.{kind}" for kind in ("conversations", "tokens", "rejected")]
        conversations: list[Conversation] = []
        refused: Counter[str] = Counter()
        account, cures = Account(), dict[str, str]()
        source = self._sources[chunk.source]
        converter, of = Converter(source, account), {"source": chunk.source} if chunk.source else {}
        with files[2].open("w", encoding="utf-8", errors="backslashreplace") as rejected:
            for raw in chunk.rows():
                try:
                    conversation = converter.conversation(raw)
                    for side in (conversation, *([other_side(conversation)] if conversation.rejected else [])):
                        if reason := self._renderer.refusal(side):
                            raise Refused(reason)
                    conversations.append(conversation)
                except Refused as error:
                    refused[error.reason] += 1
                    cures[error.reason] = error.cure
                    entry = {"row": raw.number, **of, "where": raw.where, "reason": str(error), "values": raw.values}
                    rejected.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
        tokens = self._renderer.token_rows(conversations)
        worse = rejected_ids(conversations, self._renderer) if source.columns.chosen is not None else None
        names = {tag: renamed(tag, mixed=bool(chunk.source)) for c in conversations for tag in c.tags}
        _write(files[0], _conversation_table(conversations, names))
        _write(files[1], _token_table(tokens, worse))
        answers = [m for c in conversations for m in c.messages if m["role"] == "assistant"]
        return Part(
            *files,
            rows=np.array([c.row for c in conversations], np.int64),
            keys=keys(
                [c.question for c in conversations],
                [c.opening for c in conversations],
                near_duplicates=self._near_duplicates,
            ),
            lengths=np.stack([tokens.lengths, tokens.prompt_length, np.ptp(tokens.thinking, axis=1)], axis=1).astype(
                np.int32
            ),
            of=tokens.conversations,
            refused=refused,
            languages={
                "thinking": Counter(languages([m["thinking"] for m in answers if "thinking" in m])),
                "answer": Counter(languages([m["content"] for m in answers if m["content"]])),
            },
            neutralised=sum(c.holds_special_tokens for c in conversations) * (source.special_tokens == "neutralise"),
            tags=list(names.values()),
            validation=chunk.validation,
            digests=_digests(tokens),
            account=account,
            largest=_largest(tokens, conversations),
            worse=np.empty(0, np.int32) if worse is None else worse.value_lengths().to_numpy() + tokens.prompt_length,
            cures=cures,
            source=chunk.source,
        )


_as_json = json.JSONEncoder(ensure_ascii=False).encode


def _largest(tokens: TokenRows, conversations: list[Conversation]) -> tuple[int, int]:
    """The largest id, and the number of its row; -1 and 0 where there is no token."""
    if not len(tokens.input_ids):
        return -1, 0
    at = int(tokens.input_ids.argmax())
    row = int(np.searchsorted(tokens.starts, at, side="right")) - 1
    return int(tokens.input_ids[at]), conversations[tokens.conversations[row]].row


def _digests(tokens: TokenRows) -> np.ndarray:
    """uint64 (token rows,): of the ids and where the loss begins."""
    digests = b"".join(
        hashlib.blake2b(ids.tobytes() + length.tobytes(), digest_size=8).digest()
        for ids, length in zip(tokens.rows(), tokens.prompt_length, strict=True)
    )
    return np.frombuffer(digests, np.uint64)


def _conversation_table(conversations: list[Conversation], names: dict[str, str]) -> pa.Table:
    """Of some conversations; ``names`` are those of their tags' columns."""
    tails = [
        _as_json(
            {"messages": c.messages}
            | ({TOOLS: c.tools} if c.tools else {})
            | ({REJECTED: c.rejected} if c.rejected else {})
            | {names[k]: v for k, v in c.tags.items()}
        ).removeprefix("{")
        for c in conversations
    ]
    columns = {
        "row": pa.array([c.row for c in conversations], pa.int64()),
        "messages": pa.array([c.messages for c in conversations], pa.list_(MESSAGE)),
        "tail": pa.array(tails, pa.string()),
    }
    if any(c.tools for c in conversations):
        written = [json.dumps(c.tools, ensure_ascii=False) if c.tools else None for c in conversations]
        columns[TOOLS] = pa.array(written, pa.string())
    if any(c.rejected for c in conversations):
        columns[REJECTED] = pa.array([c.rejected for c in conversations], MESSAGE)
    return pa.table(
        columns | {name: pa.array([c.tags.get(tag) for c in conversations], pa.string()) for tag, name in names.items()}
    )


def renamed(tag: str, *, mixed: bool = False) -> str:
    """The row's own columns beside ours; one that bears a name of ours is kept under ``source_<name>``."""
    ours = ("row", "split", "messages", "tail", TOOLS, REJECTED, *((SOURCE,) if mixed else ()))
    return f"source_{tag}" if tag in ours else tag


def _token_table(tokens: TokenRows, worse: pa.Array | None) -> pa.Table:
    ids = pa.ListArray.from_arrays(pa.array(tokens.starts.astype(np.int32)), pa.array(tokens.input_ids))
    return pa.table(
        {
            "input_ids": ids,
            "prompt_length": tokens.prompt_length,
            "thinking_start": tokens.thinking[:, 0],
            "thinking_end": tokens.thinking[:, 1],
        }
        | ({} if worse is None else {REJECTED_IDS: worse})
    )


def _write(path: Path, table: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
