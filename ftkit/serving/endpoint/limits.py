"""What one process of the endpoint takes on."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from ftkit.chat.messages import ModelError

SETTINGS = (
    "FTKIT_MAX_NEW_TOKENS",
    "FTKIT_MAX_INPUT_TOKENS",
    "FTKIT_MAX_CONCURRENT_REQUESTS",
    "FTKIT_BATCH_SIZE",
    "SCORING_TIMEOUT_MS",
    "FTKIT_BODY_TIMEOUT_MS",
    "FTKIT_HEADER_TIMEOUT_MS",
    "FTKIT_SEND_TIMEOUT_MS",
)
SPARE_THREADS = 200
"""Of a server, beside one for each request in hand: for health, for those too many, for bodies that come slowly."""
CHARACTERS_PER_TOKEN = 16
"""A text with more of them is refused before it is tokenized. Prose has 1 to 5, code less than 8."""
TOKENS_PER_MESSAGE = 4
"""What a chat's format adds to each message at the least."""


class Limits(NamedTuple):
    """Limits of one process; each field is set by the environment variable of its name, ``FTKIT_`` before it.

    Attributes:
        max_new_tokens, max_input_tokens: tokens of one request.
        concurrent_requests: that are in hand; a further one gets a 429.
        batch_size: requests that go through the model together, the others wait their turn.
        timeout_ms: milliseconds that a request may take; set by ``SCORING_TIMEOUT_MS``.
        body_timeout_ms: milliseconds that its body may take to arrive.
        header_timeout_ms: milliseconds that its headers may; kept by ``ftkit.serving.local_worker`` alone.
        send_timeout_ms: milliseconds that a client may leave what it was sent unread.
    """

    max_new_tokens: int = 4096
    max_input_tokens: int = 8192
    concurrent_requests: int = 32
    batch_size: int = 32
    timeout_ms: int = 180_000
    body_timeout_ms: int = 30_000
    header_timeout_ms: int = 30_000
    send_timeout_ms: int = 30_000

    @property
    def characters(self) -> int:
        """Of all texts of a request together."""
        return self.max_input_tokens * CHARACTERS_PER_TOKEN

    @property
    def messages(self) -> int:
        """Of a chat; more of them are certain to have too many tokens."""
        return max(1, self.max_input_tokens // TOKENS_PER_MESSAGE)

    @property
    def body_bytes(self) -> int:
        """Of a longer body it is certain that its texts are too long."""
        return self.characters * 6 + self.messages * 64 + 65_536  # a character may be written in six, as \\u3042

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Limits:
        """The limits that environment variables set.

        Raises:
            ModelError: one is no positive whole number.
        """
        for name in SETTINGS:
            if not re.fullmatch(r"[1-9]\d{0,11}", environment.get(name, "1")):
                raise ModelError(f"{name}={environment[name]!r} in the environment; it takes a positive whole number")
        return cls(*(int(environment.get(name, usual)) for name, usual in zip(SETTINGS, cls(), strict=True)))


def limit_sending(connection: socket.socket, seconds: float) -> None:
    """Have a send fail that the client leaves unread for so long, in place of holding its thread for ever."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
