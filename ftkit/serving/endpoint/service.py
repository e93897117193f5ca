"""The model that an endpoint serves: what it takes on, and the prompt that it makes of a chat."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ftkit.chat.format import Parser, parser_of, writes_harmony
from ftkit.chat.harmony_render import checked_harmony
from ftkit.chat.messages import Conversation, ModelError
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.families import family_of
from ftkit.serving.endpoint.answering import Answering
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.engine import Busy, Engine, Restarting, Start, Words, choose_engine, engine_class
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.loading import check_weights, load_tokenizer
from ftkit.serving.endpoint.logprobs import TokenWords
from ftkit.serving.endpoint.refusals import STARTING, Refused
from ftkit.serving.endpoint.requests import Request, Rules, Sampling

SHARE_OF_TIME = 0.95
"""Of a request's time limit, for the model: the answer has to get out as well."""


class Served:
    """A loaded model that answers many requests at a time.

    Args:
        folder: of the model, with adapters, if any, in ``adapters/<name>/`` in PEFT's format.
        limits: of requests.
        names: that requests may give the model; that of ``ftkit.json`` or the folder's if there is none.
        engine: a name of ``ENGINES``, or ``auto``.
        engine_args: of its command line.
        fronts: processes of gunicorn that share one engine, this one included.

    Attributes:
        engine: that answers.
        adapters, model, notes, where: of the engine.
        context: tokens of the longest prompt with its answer.

    Raises:
        ModelError: it or one of its adapters cannot be loaded whole, its chat template cannot be used, no question
            fits, or the engine does not start, or applies an adapter otherwise than it was trained.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        names: Sequence[str] = (),
        engine: str = "transformers",
        engine_args: Sequence[str] = (),
        fronts: int = 1,
    ):
        check_weights(folder)
        defaults = ServingDefaults.read(folder)
        self.context = context_of(folder)

        def read_words() -> Words:
            return self._read_words(folder, limits, defaults)

        names = list(names) or [defaults.name or folder.name]
        start = Start(folder, names, read_words, limits, engine_args, fronts)
        self.engine: Engine = engine_class(choose_engine(engine))(start)
        self.rules = self.rules._replace(passed_on=self.engine.passed_on)
        self.context = min(self.context, self.engine.context() or self.context)
        self.adapters, self.model = self.engine.adapters, self.engine.model
        self.notes, self.where = self.engine.notes, self.engine.where

    def _read_words(self, folder: Path, limits: Limits, defaults: ServingDefaults) -> Words:
        """Load the tokenizer, and what else makes a prompt of a chat."""
        self.tokenizer: Any = load_tokenizer(folder)
        if not self.tokenizer.chat_template:
            raise ModelError(f"{folder} holds no chat template")
        self.parser: Parser = parser_of(self.tokenizer, must_be=must_be(folder))
        self._harmony = writes_harmony(self.tokenizer)
        self._words = TokenWords(self.tokenizer)
        self._renderers: dict[str, Any] = {}  # of chats with tools, by date
        self._lock = threading.Lock()
        self.rules = Rules(limits, defaults, special_tokens(self.tokenizer), read_sampling(folder))
        try:
            probe = self.prompt_ids(Request([{"role": "user", "content": "…"}]))
        except Refused as error:
            raise ModelError(f"FTKIT_MAX_INPUT_TOKENS={limits.max_input_tokens}: {error.message}") from error
        return Words(self.parser.stop_ids, probe)

    @property
    def limits(self) -> Limits:
        return self.rules.limits

    def begin(self, request: Request) -> Answering:
        """As ``begin_all`` for a request of one answer."""
        return self.begin_all(request)[0]

    def begin_all(self, request: Request) -> list[Answering]:
        """Take a request on, in a place for each answer; nothing is tokenized before it has them.

        Raises:
            Refused: it is too long, names no model that is here, or too many are in hand.
        """
        adapter = self.adapters.named(request.model)
        self._reserve(request.n)
        try:
            prompt = self.prompt_ids(request)
            length = min(request.max_new_tokens or self.limits.max_new_tokens, self.context - len(prompt))
            deadline = time.monotonic() + SHARE_OF_TIME * self.limits.timeout_ms / 1000
            jobs = [
                Job(
                    prompt,
                    length,
                    deadline,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=None if request.seed is None else request.seed + number,
                    stepwise=request.stream or bool(request.stop),
                    adapter=adapter,
                    more=request.more,
                    likeliest=request.likeliest,
                )
                for number in range(request.n)
            ]
        except BaseException:
            for _ in range(request.n):
                self.engine.release()
            raise
        for job in jobs:
            self.engine.submit(job, reserved=True)
        request = request._replace(model=request.model or self.adapters.base)
        return [Answering(request, job, self.parser.reader(prompt), self._words.shown) for job in jobs]

    def _reserve(self, places: int) -> None:
        for taken in range(places):
            try:
                self.engine.reserve()
            except (Busy, Restarting) as error:
                for _ in range(taken):
                    self.engine.release()
                if isinstance(error, Restarting):
                    raise Refused(STARTING, "", 503) from error
                busy = f"{self.limits.concurrent_requests} requests are being answered; try again later"
                raise Refused(busy, "", 429, "rate_limit_exceeded") from error

    def prompt_ids(self, request: Request) -> list[int]:
        """Token ids of the chat, up to where the assistant takes over.

        Raises:
            Refused: they are too many, or the model's chat template does not take the chat.
        """
        ids = self._with_tools(request) if self._harmony and has_tools(request) else self._by_template(request)
        asked = request.max_new_tokens if request.length and not request.openai else None
        room = min(self.limits.max_input_tokens, self.context - (asked or 1))
        if len(ids) > room:
            beside = f"beside {request.length}={asked} " if room < self.limits.max_input_tokens and asked else ""
            most = " (the maximum context length here)" if request.openai else ""
            said = f"the request has {len(ids)} tokens; {beside}at most {room} are taken{most}"
            raise Refused(said, request.given, code="context_length_exceeded")
        return ids

    def _with_tools(self, request: Request) -> list[int]:
        """As training writes chats with tools: published templates write them in another way than such models know."""
        date = self.rules.defaults.current_date or datetime.now().astimezone().date().isoformat()
        functions = [tool["function"] for tool in request.tools]
        history = [message | {"train": False} for message in request.messages]
        try:
            with self._lock:
                if date not in self._renderers:
                    self._renderers = {date: checked_harmony(self.tokenizer, current_date=date)}
                renderer = self._renderers[date]
            return renderer.prompt(Conversation(0, history, request.reasoning_effort, {}, functions))
        except Exception as error:  # of a schema that is none
            said = " ".join(str(error).split())[:200]
            raise Refused(f"the tools cannot be written as a prompt: {said}", "tools") from error

    def _by_template(self, request: Request) -> list[int]:
        options: dict[str, Any] = {"reasoning_effort": request.reasoning_effort}
        if date := self.rules.defaults.current_date:
            options |= self.parser.clock(date)
        if request.tools:
            functions = [tool["function"] for tool in request.tools]
            options["tools"] = [
                {"type": "function", "function": function | {"parameters": function["parameters"] or {}}}
                for function in functions
            ]
        try:
            text = self.tokenizer.apply_chat_template(
                request.messages, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # of a template, which may raise whatever it likes
            said = " ".join(str(error).split())[:200]
            raise Refused(f"the model's chat template does not take {request.given}: {said}", request.given) from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def has_tools(request: Request) -> bool:
    """Whether tools are offered, or have been called."""
    return bool(request.tools) or any("tool_calls" in message for message in request.messages)


def context_of(folder: Path) -> int:
    """The longest context in tokens that the model's ``config.json`` gives.

    Raises:
        ModelError: it gives none.
    """
    path = folder / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path} gives no max_position_embeddings: {error}") from error


def must_be(folder: Path) -> str | None:
    """The format that the model's family writes chats in, whatever its tokenizer has; None for any."""
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    return family_of(str(model_type)).chat


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds the special tokens of a vocabulary in a text."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def read_sampling(folder: Path) -> Sampling:
    """What the model's ``generation_config.json`` says, as vLLM takes it; OpenAI's own 1.0 where it says nothing.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("do_sample") is False:
            return Sampling(0.0, 1.0)
        given = {name: found[name] for name in Sampling._fields if found.get(name) is not None}
        return Sampling(**{name: float(value) for name, value in given.items()})
    except FileNotFoundError:
        return Sampling()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
