"""Bytes and text of a file: what is compressed unpacked, what is not UTF-8 decoded, lines of bounded length."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from ftkit.config.data_files import compression_of

LONGEST = 64 << 20
"""Bytes of a line, or characters of a cell, from which a row is refused rather than held in memory."""
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, MemoryError)
"""What reading raises when a file is cut off, is not what its name says, or cannot be opened."""
UNDECODABLE = "\udcff"
"""Stands for bytes that the encoding does not know; no text of any row may hold it."""
TOO_LONG = f"the line is longer than {LONGEST >> 20} MiB"
OTHER_KINDS = (
    (b"\x1f\x8b", "compressed by gzip (.gz)"),
    (b"\xfd7zXZ", "compressed by xz (.xz)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd (.zst)"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook (.xlsx)"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook of before 2007 (.xls)"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF", "PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a pointer of Git LFS; git lfs pull fetches the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
)
"""How files begin that bear the name of a text file and are none."""


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that Python's codec does not know: of EUC-JP and ISO-2022-JP, ① and the like after all."""
    assert isinstance(error, UnicodeDecodeError)
    pair = error.object[error.start : error.start + 2]
    if error.encoding.startswith(("euc_jp", "iso2022_jp")) and len(pair) == 2:
        with suppress(UnicodeDecodeError):
            return bytes(byte | 0x80 for byte in pair).decode("euc_jis_2004"), error.start + 2
    return UNDECODABLE, error.end


codecs.register_error("ftkit.undecodable", _undecodable)


class Unreadable(Exception):
    """A file of which nothing can be read; carries the reason, and what the user can do."""

    def __init__(self, reason: str, cure: str = ""):
        super().__init__(reason)
        self.cure = cure


class TooLong(Exception):
    """A line is longer than ``LONGEST``; the next one can be read."""


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, unpacked.

    Raises:
        Unreadable: it is empty, no regular file, or of another kind than its name says.
    """
    with ExitStack() as stack:
        plain = stack.enter_context(path.open("rb"))
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a regular file")
        stream = stack.enter_context(_unpacked(plain, compression_of(path)))
        start = stream.peek(64)
        if not start:
            raise Unreadable("the file is empty")
        if kind := next((kind for begin, kind in OTHER_KINDS if start.startswith(begin)), None):
            raise Unreadable(f"the file is {kind}, whatever its name says")
        yield stream


def _unpacked(plain: io.BufferedReader, compression: str) -> io.BufferedReader:
    if not compression:
        return plain
    streams = {
        ".gz": lambda: gzip.GzipFile(fileobj=plain),
        ".xz": lambda: lzma.LZMAFile(plain),  # noqa: SIM115
        ".bz2": lambda: bz2.BZ2File(plain),
        ".zst": lambda: pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), "zstd"),
    }
    return io.BufferedReader(cast(io.RawIOBase, streams[compression]()))


def beginning(stream: io.BufferedReader, size: int) -> bytes:
    """The first bytes, ``size`` at most; of a file that is cut off, those before the cut."""
    blocks: list[bytes] = []
    while size > 0 and (block := next_block(stream, size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def next_block(stream: io.BufferedReader, size: int) -> bytes:
    """Some bytes; none at the end of the stream, or where it is damaged."""
    try:
        return stream.read1(size)
    except DAMAGE:
        return b""


def decoded(stream: io.BufferedReader, encoding: str) -> io.TextIOWrapper:
    """The bytes as text with its line ends as they are; ``UNDECODABLE`` stands where the encoding has no character."""
    name = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(stream, encoding=name, errors="ftkit.undecodable", newline="")


def byte_lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """Lines with their ends; None for one longer than ``LONGEST``, of which nothing is kept."""
    while line := stream.readline(LONGEST):
        if len(line) == LONGEST and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
            yield None
        else:
            yield line


def text_lines(text: IO[str]) -> Iterator[str]:
    """Lines with their ends.

    Raises:
        TooLong: in place of a line longer than ``LONGEST``; the iteration can go on.
    """
    return _TextLines(text)


class _TextLines(Iterator[str]):
    """A generator would be over after its first error."""

    def __init__(self, text: IO[str]):
        self._text = text

    def __next__(self) -> str:
        line = self._text.readline(LONGEST)
        if not line:
            raise StopIteration
        if len(line) == LONGEST and not line.endswith(("\n", "\r")):
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(LONGEST)
            raise TooLong(TOO_LONG)
        return line
