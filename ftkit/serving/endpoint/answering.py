"""One request while it is being answered: its text piece by piece, and the whole in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ftkit.chat.format import Reader
from ftkit.serving.endpoint.answers import describe, first_of
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request
from ftkit.serving.endpoint.sampling import Chosen


class Answering:
    """One request while it is being answered.

    Args:
        shown: a token of the output with its log-probability, as the client gets it.
    """

    def __init__(self, request: Request, job: Job, reader: Reader, shown: Callable[[Chosen], Any] = lambda _: None):
        self.request, self.job = request, job
        self._reader, self._shown = reader, shown
        self._read, self._held, self._stopped = 0, "", False
        self._thought, self._written = 0, 0  # tokens of the thinking, characters of the output
        self._output: list[tuple[int, int]] = []  # its tokens' places in the job, each with where its text begins

    def pieces(self, gone: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, str]]:
        """New text, each with ``thinking`` or ``output``; a stop text and what follows it are left out.

        Args:
            gone: whether the client has gone, which ends it.

        Raises:
            Refused: the model failed, or the request's time was over before its turn came.
        """
        for token in self.job.tokens(gone):
            yield from self._before_stop(self._feed(token))
            if self._stopped:
                self.job.cancel("stop")
                break
        if self.job.ended == "never begun":
            raise Refused("earlier requests took all the time of this one; try again later", status=429)
        if self.job.refusal:
            raise self.job.refusal
        if self.job.ended == "failed":
            raise Refused("the model failed; the log says why", status=500)
        yield from self._before_stop(self._reader.close())
        if self._held and not self._stopped:
            yield "output", self._held

    def whole(self, gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The answer in ftkit's format; see ``pieces``."""
        for _ in self.pieces(gone):
            pass
        return self.result()

    def result(self) -> dict[str, Any]:
        """The answer in ftkit's format, once there are no more pieces; beside it what OpenAI's formats have."""
        answer = describe(
            self._reader.completion(), self.request, len(self.job.prompt), self._read, self.job.max_new_tokens
        )
        if self.request.openai:
            answer["reasoning_tokens"] = self._thought
        if self.job.likeliest is not None:
            answer["logprobs"] = self.logprobs(len(answer["output"]))
        return answer

    def logprobs(self, sent: int) -> list[Any]:
        """Those of the output's tokens that begin within its first characters, and were not asked for before."""
        within = [place for begin, place in self._output if begin < sent]
        self._output = [(begin, place) for begin, place in self._output if begin >= sent]
        return [self._shown(self.job.chosen[place]) for place in within]

    def _feed(self, token: int) -> list[tuple[str, str]]:
        before = self._reader.kind
        pieces = self._reader.feed(token)
        after, new = self._reader.kind, sum(len(text) for kind, text in pieces if kind == "output")
        if after == "output" and (before == "output" or new):
            self._output.append((self._written, self._read))
        self._thought += before == after == "thinking"
        self._written += new
        self._read += 1
        return pieces

    def _before_stop(self, pieces: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Hold back what may be the beginning of a stop text."""
        if not self.request.stop:
            yield from pieces
            return
        may_begin = max(map(len, self.request.stop)) - 1
        for kind, text in pieces:
            if kind == "output" and not self._stopped:
                text = self._held + text
                cut = first_of(text, self.request.stop)
                self._stopped = cut is not None
                sure = max(0, len(text) - may_begin) if cut is None else cut
                text, self._held = text[:sure], text[sure:]
            if text:
                yield kind, text
