"""Requests while they arrive: whether one is whole is told from its bytes, so that no thread has to wait for it."""

from __future__ import annotations

import re
from typing import Literal

HEAD_BYTES = 65_536
"""Of a request line and headers."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*(?=\r\n)", re.I)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.I)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;|$)")
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.I)

Stage = Literal["head", "body", "whole", "head too long", "body too long"]


class Arriving:
    """The bytes of one request so far.

    Args:
        body_bytes: that the body may have.

    Attributes:
        stage: what is still awaited; ``whole`` is a request that is all there, or broken beyond waiting for more.
        expects_continue: the client waits for a word before it sends the body.
    """

    def __init__(self, body_bytes: int):
        self.buffer = bytearray()
        self.stage: Stage = "head"
        self.expects_continue = False
        self._most, self._length = body_bytes, -1  # -1: in chunks
        self._body = self._at = 0  # where the body begins, and the next chunk

    def add(self, data: bytes) -> None:
        """Take what has come."""
        self.buffer += data
        if self.stage == "head":
            self._read_head(len(data))
        if self.stage == "body" and self._is_whole():
            self.stage = "whole"
        if self.stage in ("body", "whole") and max(self._length, len(self.buffer) - self._body) > self._most:
            self.stage = "body too long"

    def _read_head(self, new: int) -> None:
        end = self.buffer.find(b"\r\n\r\n", max(0, len(self.buffer) - new - 3))
        if end < 0:
            self.stage = "head too long" if len(self.buffer) > HEAD_BYTES else "head"
            return
        head = bytes(self.buffer[: end + 2])
        self._body = self._at = end + 4
        self.stage = "body"
        self.expects_continue = _EXPECTS.search(head) is not None
        if _CHUNKED.search(head) is None:
            found = _LENGTH.search(head)
            self._length = int(found.group(1)) if found else 0

    def _is_whole(self) -> bool:
        if self._length >= 0:
            return len(self.buffer) - self._at >= self._length
        while True:
            line = self.buffer.find(b"\r\n", self._at)
            if line < 0:
                return len(self.buffer) - self._at > 1024  # no size of a chunk
            if not (found := _SIZE.match(self.buffer, self._at, line)):
                return True
            size = int(found.group(1), 16)
            if size == 0:
                return self.buffer.startswith(b"\r\n", line + 2) or self.buffer.find(b"\r\n\r\n", line + 2) >= 0
            if len(self.buffer) < line + 2 + size + 2:
                return False
            self._at = line + 2 + size + 2
