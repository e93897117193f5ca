"""A model behind an OpenAI-compatible server; one that is down, busy or failing is asked again, for so long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftkit.chat.messages import Conversation, Message
from ftkit.config.schema import Config
from ftkit.data.refused import Refused
from ftkit.data.thinking import split_thinking
from ftkit.errors import StageError, nearest
from ftkit.evaluation.asking import AskedFor, Say
from ftkit.evaluation.measures import Answer
from ftkit.generation.layout import plain_messages
from ftkit.packages import require_extra
from ftkit.serving.client import LOOPBACK, read_answer

if TYPE_CHECKING:
    import httpx

AGAIN = "the same command goes on with the rest"
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses of a server that may answer the same request later."""
LONGEST_PAUSE_S = 30.0
SAY_EVERY_S = 10.0


class Teacher:
    """Asks a server, several requests at a time.

    Args:
        config: the whole configuration.
        tokens_of: counts a text's tokens.
        say: prints a line to the user.
    """

    def __init__(self, config: Config, tokens_of: Callable[[str], int], say: Say):
        settings = config.generate
        assert settings.url and settings.model
        self.model = settings.model
        self.shown = f"{settings.model} at {settings.url}"
        self.digest = f"{settings.url.rstrip('/')} {settings.model}"
        self._config, self._settings, self._tokens_of, self._say = config, settings, tokens_of, say
        self._url = settings.url.rstrip("/")
        self._given_up, self._lock = Event(), Lock()
        self._answered, self._said = False, 0.0

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        return [[] for _ in conversations]

    def answers(
        self, asked: Sequence[AskedFor], before: Sequence[list[Message]], done: Collection[int]
    ) -> Iterator[Mapping[int, Answer]]:
        """Raises StageError: the server refuses all requests, or one could not be answered for ``patience_s``."""
        require_extra("serve", "asking a server")
        import httpx

        left = (place for place in range(len(asked)) if place not in done)
        local = urlsplit(self._url).hostname in LOOPBACK  # which no proxy of the environment can reach
        timeout = httpx.Timeout(self._settings.timeout_s, connect=min(self._settings.timeout_s, 10))
        waiting: dict[Future[Answer], int] = {}
        self._given_up = Event()
        pool = ThreadPoolExecutor(self._settings.concurrency)
        client = httpx.Client(timeout=timeout, trust_env=not local, headers=self._key())
        try:
            self._check_name(client)
            while True:
                for place in islice(left, 2 * self._settings.concurrency - len(waiting)):
                    waiting[pool.submit(self._answer, client, asked[place], before[place])] = place
                if not waiting:
                    return
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                failed = [error for future in ended if (error := future.exception())]
                if failed:  # no new request; what is answered by those under way is kept
                    self._given_up.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    ended = {future for future in waiting if not future.cancelled()}
                if answered := {waiting.pop(f): f.result() for f in ended if not f.exception()}:
                    yield answered
                if failed:
                    raise failed[0]
        finally:
            self._given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

    def _key(self) -> dict[str, str]:
        name = self._settings.api_key_env
        return {"Authorization": f"Bearer {os.environ[name]}"} if name else {}

    def _check_name(self, client: httpx.Client) -> None:
        """Refuse a name that the server does not list, before the first request; not every server lists any."""
        import httpx

        try:
            listed = client.get(f"{self._url}/models", timeout=10).raise_for_status().json()
            names = [str(entry["id"]) for entry in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return
        if names and self.model not in names:
            close = nearest(self.model, names) or names[0]
            what = f"the server has no model {self.model!r}; it has {', '.join(names[:8])}"
            raise StageError(what, where=self._url, cure=f"generate.model={close}")

    def _answer(self, client: httpx.Client, asked: AskedFor, before: list[Message]) -> Answer:
        question, sample = asked
        body = {
            "model": self.model,
            "messages": plain_messages(before),
            "max_tokens": self._settings.max_new_tokens,
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "seed": self._settings.seed + sample,
            **self._settings.extra_body,
        }
        began = time.perf_counter()
        found = self._posted(client, body, question.row)
        thinking, output, ended, tokens = self._read(found) if found else ("", "", False, 0)
        return Answer(
            row=question.row,
            sample=sample,
            question=question.question,
            expected=question.expected,
            match=self._settings.match,
            thinking=thinking,
            output=output,
            parses=bool(output.strip()),
            finished=ended,
            tokens=tokens or self._tokens_of(thinking + output),
            thinking_tokens=self._tokens_of(thinking),
            seconds=time.perf_counter() - began,
        )

    def _read(self, body: Mapping[str, Any]) -> tuple[str, str, bool, int]:
        """Thinking, answer, whether it ended by itself, and its tokens."""
        answer = read_answer(body, "vllm", self._url)
        thinking, output = answer.thinking, answer.output
        if not thinking:
            try:
                inside, output = split_thinking(output, self._config.dataset.thinking_tag)
                thinking = inside or ""
            except Refused:  # cut off in its thinking, for instance
                output = ""
        return thinking, output, answer.finish_reason == "stop", answer.completion_tokens or 0

    def _posted(self, client: httpx.Client, body: Mapping[str, Any], row: int) -> dict[str, Any] | None:
        """The answer's body; None where the server refuses this one request, as too long for it perhaps."""
        import httpx

        began, pause = time.monotonic(), 1.0
        while not self._given_up.is_set():
            asked_for = None
            try:
                answer = client.post(f"{self._url}/chat/completions", json=body)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise StageError(f"is no address: {error}", where=self._url, cure="generate.url=http://…/v1") from error
            except httpx.TimeoutException:
                why = f"no answer within {self._settings.timeout_s:g} s"
            except httpx.TransportError as error:
                why = f"no connection ({type(error).__name__})"
            else:
                if found := _whole(answer, self._url):
                    self._answered = True
                    return found
                if not answer.is_success and answer.status_code not in PASSING:
                    return self._refused(answer, row)
                why, asked_for = f"{answer.status_code} ({said_in(answer)})", pause_of(answer)
            self._wait(why, asked_for, began, pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise StageError("ended with another request", where=self._url, cure=AGAIN)

    def _wait(self, why: str, asked_for: float | None, began: float, pause: float) -> None:
        """Wait before the next try.

        Raises:
            StageError: there is no patience left for it.
        """
        seconds = pause if asked_for is None else asked_for
        left = self._settings.patience_s - (time.monotonic() - began)
        if seconds > left:
            wants = f", which asks to wait {asked_for:.0f} s" if asked_for else ""
            what = f"the server does not answer: {why}{wants}; patience of {self._settings.patience_s:g} s is over"
            cure = f"{AGAIN}, what was answered is kept; generate.patience_s=<more>, or generate.concurrency=<fewer>"
            raise StageError(what, where=self._url, cure=cure)
        with self._lock:
            told = time.monotonic() - self._said < SAY_EVERY_S
            self._said = self._said if told else time.monotonic()
        if not told:
            self._say(f"{self._url}: {why}; asking again, for {left:.0f} s more at the most")
        self._given_up.wait(seconds)

    def _refused(self, answer: httpx.Response, row: int) -> None:
        """Go on without this answer where others have been given.

        Raises:
            StageError: none has, or the key is refused.
        """
        status, said = answer.status_code, said_in(answer)
        if status in (401, 403):
            name = self._settings.api_key_env
            cure = f"the key in {name}" if name else "generate.api_key_env=<a variable with the key>"
            raise StageError(f"the server does not accept the key ({status}: {said})", where=self._url, cure=cure)
        if not self._answered:
            cure = "generate.url=http://<host>/v1, generate.model=<its name there>, generate.extra_body={…}"
            raise StageError(f"the server refuses the request ({status}: {said})", where=self._url, cure=cure)
        self._say(f"row {row}: refused by the server ({status}: {said}); it counts as an answer that does not end")


def _whole(answer: httpx.Response, url: str) -> dict[str, Any] | None:
    """The body of an answer that can be read; None for any other."""
    try:
        body = answer.json() if answer.is_success else None
        if body is not None:
            read_answer(body, "vllm", url)
        return body
    except (ValueError, StageError):
        return None


def pause_of(answer: httpx.Response) -> float | None:
    """Seconds that a server asks to wait, in either form of Retry-After; None where it does not say."""
    text = answer.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def said_in(answer: httpx.Response) -> str:
    """What a server says of an error, in a line."""
    try:
        error = answer.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return " ".join(text.split())[:160] or answer.reason_phrase
