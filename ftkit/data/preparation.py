"""Chunks of raw rows to parts on disk, by several processes, in order; memory hardly grows with the rows.

A part holds the conversations and token rows of one chunk; ``assembly`` joins the parts once the split is known.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from ftkit.config.groups import Dataset
from ftkit.data.conversations import Conversation, Refused, to_conversation
from ftkit.data.harmony import Harmony, TokenRows
from ftkit.data.languages import languages
from ftkit.data.readers import Chunk
from ftkit.data.splits import Keys, keys
from ftkit.errors import StageError
from ftkit.processes import usable_cores

ALONE = 4
"""So many chunks are prepared without starting other processes."""
IN_FLIGHT = 3
"""Chunks that wait for each process."""

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("thinking", pa.string())])


@dataclass(frozen=True)
class Work:
    """What a worker needs to prepare chunks.

    Attributes:
        dataset: its settings.
        harmony: writes the tokens.
        folder: where parts go.
    """

    dataset: Dataset
    harmony: Harmony
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
        tags: names of the other columns.
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker | None = None


def _start(work: Path) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    _worker = Worker(pickle.loads(work.read_bytes()))


def _part(number: int, chunk: Chunk) -> Part:
    assert _worker is not None
    return _worker.part(number, chunk)


class Worker:
    """Prepares chunks in one process."""

    def __init__(self, work: Work):
        self._dataset = work.dataset
        self._folder = work.folder
        self._harmony = work.harmony
        self._neutralises = work.dataset.special_tokens == "neutralise"

    def part(self, number: int, chunk: Chunk) -> Part:
        """Convert, tokenise and write one chunk."""
        files = [self._folder / f"{number:06}.{kind}" for kind in ("conversations", "tokens", "rejected")]
        conversations: list[Conversation] = []
        refused: Counter[str] = Counter()
        with files[2].open("w", encoding="utf-8", errors="backslashreplace") as rejected:
            for raw in chunk.rows():
                try:
                    conversations.append(to_conversation(raw, self._dataset))
                except Refused as error:
                    refused[error.reason] += 1
                    entry = {"row": raw.number, "where": raw.where, "reason": str(error), "values": raw.values}
                    rejected.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
        tokens = self._harmony.token_rows(conversations)
        tags = list(dict.fromkeys(tag for c in conversations for tag in c.tags))
        _write(files[0], _conversation_table(conversations, tags))
        _write(files[1], _token_table(tokens))
        answers = [m for c in conversations for m in c.messages if m["role"] == "assistant"]
        return Part(
            *files,
            rows=np.array([c.row for c in conversations], np.int64),
            keys=keys([c.question for c in conversations], near_duplicates=self._dataset.near_duplicates < 1),
            lengths=np.stack([tokens.lengths, tokens.prompt_length, np.ptp(tokens.thinking, axis=1)], axis=1).astype(
                np.int32
            ),
            of=tokens.conversations,
            refused=refused,
            languages={
                "thinking": Counter(languages([m["thinking"] for m in answers if "thinking" in m])),
                "answer": Counter(languages([m["content"] for m in answers])),
            },
            neutralised=sum(c.holds_special_tokens for c in conversations) if self._neutralises else 0,
            tags=tags,
        )


def _conversation_table(conversations: list[Conversation], tags: list[str]) -> pa.Table:
    tails = [
        json.dumps(
            {"messages": c.messages, **{renamed(k): v for k, v in c.tags.items()}}, ensure_ascii=False
        ).removeprefix("{")
        for c in conversations
    ]
    columns = {
        "row": pa.array([c.row for c in conversations], pa.int64()),
        "messages": pa.array([c.messages for c in conversations], pa.list_(MESSAGE)),
        "tail": pa.array(tails, pa.string()),
    }
    return pa.table(
        columns | {renamed(tag): pa.array([c.tags.get(tag) for c in conversations], pa.string()) for tag in tags}
    )


def renamed(tag: str) -> str:
    """The row's own columns beside ours; one that bears a name of ours is kept under ``source_<name>``."""
    return f"source_{tag}" if tag in ("row", "split", "messages", "tail") else tag


def _token_table(tokens: TokenRows) -> pa.Table:
    ids = pa.ListArray.from_arrays(pa.array(tokens.starts.astype(np.int32)), pa.array(tokens.input_ids))
    return pa.table(
        {
            "input_ids": ids,
            "prompt_length": tokens.prompt_length,
            "thinking_start": tokens.thinking[:, 0],
            "thinking_end": tokens.thinking[:, 1],
        }
    )


def _write(path: Path, table: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
