"""stage=invoke: send a request to the endpoint and print the answer with its thinking.

python -m ftkit experiment=tiny stage=invoke invoke.prompt='今日は月曜日です。3日後は何曜日ですか？'
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ftkit.console import console
from ftkit.data.conversations import system_message
from ftkit.errors import StageError
from ftkit.serving.client import build_payload, read_answer, score
from ftkit.stages import Context, Made


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
    printed.add("question", payload.get("prompt") or payload["messages"][-1]["content"])
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
    printed.end()
    how = "ended by itself" if answer.finish_reason == "stop" else "cut off at invoke.max_new_tokens"
    return Made(f"{answer.completion_tokens} tokens after {answer.prompt_tokens} of prompt, {how}")


class Labelled:
    """Prints texts that may come in pieces, each kind with its label before it."""

    def __init__(self, out: Console):
        self._out, self._kind = out, ""

    def add(self, kind: str, text: str) -> None:
        if kind != self._kind:
            self.end()
            self._kind = kind
            self._print(f"{'':13}{'answer' if kind == 'output' else kind:<10}", style="dim")
        self._print(text)

    def end(self) -> None:
        if self._kind:
            self._print("\n")

    def _print(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style), end="", soft_wrap=True)
