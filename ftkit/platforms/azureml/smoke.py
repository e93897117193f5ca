"""A real question to an endpoint, or to one deployment of it, before and while it gets traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftkit.chat.messages import system_message
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.platforms.azureml import changes
from ftkit.platforms.azureml.endpoints import Endpoint
from ftkit.platforms.base import Say
from ftkit.serving.client import Busy, NotAnswering, question, read_answer
from ftkit.serving.client import score as ask

QUESTION = "2たす3はいくつですか？"
TOKENS = 64
LIMIT_S, PAUSE_S = 300.0, 3.0
"""How long an answer is waited for in all, and between two questions: the gateway may take some seconds to know a
new deployment, and a model some minutes for its first answer."""
TRIES = 10


def check(
    config: Config, found: Endpoint, key: str, say: Say, deployment: str = "", *, may_be_busy: bool = False
) -> None:
    """Ask a deployment directly, or whichever one the traffic leads to.

    Args:
        deployment: empty for the endpoint.
        may_be_busy: it has answered before and has traffic: that it is busy says that it is alive.

    Raises:
        StageError: no answer, or one that says nothing.
    """
    server = config.deployment.server
    uri, headers = found.uri(server), {"azureml-model-deployment": deployment} if deployment else {}
    payload = question(QUESTION, TOKENS, server, system_message(config.dataset))
    timeout_s = config.deployment.request_timeout_ms / 1000 + 10
    try:
        body = _patiently(lambda: ask(uri, payload, timeout_s=timeout_s, key=key, headers=headers))
        answer = read_answer(body, server, uri)
        if not (answer.output.strip() or answer.thinking.strip()):
            raise StageError("the answer is empty", where=uri)
    except StageError as error:
        if may_be_busy and isinstance(error, Busy):
            say(f"{deployment or 'the endpoint'} is busy with other requests, so it is alive")
            return
        raise StageError(
            f"{deployment or 'the endpoint'} was asked a question: {error.what}",
            where=error.where,
            cure="deployment.keep_failed=true leaves it to look at; the same command tries again",
        ) from error


def _patiently(ask_once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An answer; one that fails to come is asked for again until the question's own time is up."""
    deadline = changes.now() + LIMIT_S
    tries = 0
    while True:
        tries += 1
        try:
            return ask_once()
        except (NotAnswering, Busy):
            if changes.now() > deadline or tries == TRIES:
                raise
        changes.pause(PAUSE_S)
