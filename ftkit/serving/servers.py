"""``deployment.server``: what those who ask a server, or start it, have to know of it.

A further server is a line in ``SERVERS``, its name in ``deployment.server``, and what starts it on each platform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftkit.serving.endpoint import paths


@dataclass(frozen=True, kw_only=True)
class Server:
    """A program that answers requests.

    Attributes:
        name: in words, for errors.
        route: that requests go to.
        health: route that is answered well once the model is loaded.
        page: route of the page to talk with it; empty where it has none.
        is_own: whether it is ftkit's: it takes a prompt alone and puts the training's system message before it, knows
            the model by ``model.name`` as well, and needs no arguments to be as a client expects it.
        length: field of a request for the most tokens of an answer.
        asked: fields of each request, so that servers answer alike.
        asked_to_stream: fields of a request for a streamed answer, so that it ends with its counts.
        arguments: of its own command line, which ``deployment.engine_args`` may change.
    """

    name: str
    route: str
    health: str
    page: str = ""
    is_own: bool = False
    length: str = "max_tokens"
    asked: Mapping[str, Any] = field(default_factory=dict)
    asked_to_stream: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


SERVERS: Mapping[str, Server] = {
    "score": Server(
        name="score.py", route=paths.SCORE, health="/", page=paths.PAGE, is_own=True, length="max_new_tokens"
    ),
    "vllm": Server(
        name="an OpenAI-compatible server",
        route=paths.CHAT,
        health="/health",
        asked={"temperature": 0},  # as score.py has it; the server's own is the model's, which draws
        asked_to_stream={"stream_options": {"include_usage": True}},
        # Without them a call of a tool stands in the answer's text; score.py reads the calls itself.
        arguments={"tool_call_parser": "openai", "enable_auto_tool_choice": True},
    ),
}
