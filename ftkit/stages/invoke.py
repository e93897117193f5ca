"""stage=invoke: send a request to the endpoint and print the answer with its thinking.

python -m ftkit experiment=tiny stage=invoke invoke.prompt='今日は月曜日です。3日後は何曜日ですか？'
"""

from __future__ import annotations

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from ftkit.chat.messages import system_message
from ftkit.console import console, printable
from ftkit.errors import StageError
from ftkit.pipeline.stage import Context, Made
from ftkit.serving.client import Answer, build_payload, question_in, read_answer, score
from ftkit.translation import said


def run(context: Context) -> Made:
    """Print the question, the thinking and the answer, as they come or when all is there.

    Raises:
        StageError: the endpoint is not running, refuses the request, or does not answer in time.
    """
    config, out = context.config, console()
    name = config.deployment.endpoint_name
    target = context.platform.target()
    if target is None:
        raise StageError(f"the endpoint {name} is not running", cure="stage=deploy,invoke")
    stream = out.is_terminal if config.invoke.stream is None else config.invoke.stream
    form = "vllm" if config.invoke.model else target.server  # a request that names a model is OpenAI's
    payload = build_payload(config.invoke, form, system_message(config.dataset), stream=stream)
    printed = Labelled(out)
    printed.add("question", question_in(payload))
    try:
        body = score(
            target.scoring_uri,
            payload,
            timeout_s=config.deployment.request_timeout_ms / 1000,
            key=target.key,
            log=target.log or None,
            on_piece=printed.add if stream else None,
        )
        answer = read_answer(body, "score" if stream else form, target.scoring_uri)
        for kind, text in (("thinking", answer.thinking), ("output", answer.output)):
            if not (stream and text):
                printed.add(kind, text or "–")
        for call in answer.calls:
            printed.add("call", call)
        if answer.note:
            printed.add("note", answer.note)
    finally:
        printed.end()
    return Made(_summary(answer, from_file=config.invoke.file is not None))


def _summary(answer: Answer, *, from_file: bool) -> str:
    hows = {"stop": "ended by itself", "tool_calls": "ended with a call of a tool"}
    how = hows.get(answer.finish_reason, "cut off" if from_file else "cut off at invoke.max_new_tokens")
    if answer.completion_tokens is None:
        return how
    return f"{answer.completion_tokens} tokens after {answer.prompt_tokens} of prompt, {how}"


class Labelled:
    """Prints texts that may come in pieces, each kind with its label before it."""

    def __init__(self, out: Console):
        self._out, self._kind = out, ""

    def add(self, kind: str, text: str) -> None:
        if kind != self._kind:
            self.end()
            self._kind = kind
            label = said("answer" if kind == "output" else kind)
            self._print(f"{'':13}{set_cell_size(label, 10)}", style="dim")
        self._print(printable(text), style="dim" if kind == "thinking" else "")

    def end(self) -> None:
        if self._kind:
            self._print("\n")
            self._kind = ""

    def _print(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style), end="", soft_wrap=True)
