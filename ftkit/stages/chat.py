"""stage=chat: talk with the deployed model in the terminal; with deployment.adapters, with each of them side by side.

python -m ftkit experiment=tiny stage=chat
echo '5メートルは何センチメートルですか？' | python -m ftkit experiment=tiny stage=chat
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rich.cells import set_cell_size
from rich.text import Text

from ftkit.chat.messages import system_message
from ftkit.config.schema import Config
from ftkit.console import INDENT, console, printable
from ftkit.errors import StageError
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.base import Target
from ftkit.serving.client import Answer, NotAnswering, build_payload, read_answer, score
from ftkit.stages.invoke import Labelled
from ftkit.translation import said

COMMANDS = {
    "/reset": "forget what was said",
    "/fold": "hide the thinking, or show it again",
    "/quit": "end (Ctrl-D too)",
}


@dataclass
class Chat:
    """A chat with one model.

    Attributes:
        model: its name; None asks whatever is deployed.
        system: message before all others.
        said: messages of both sides so far.
    """

    model: str | None
    system: str
    said: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str, config: Config, target: Target, on_piece: Callable[[str, str], None]) -> Answer:
        """Send a question with all that was said before; the chat goes on only if it is answered.

        Raises:
            StageError: the endpoint refuses it, or does not answer.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.said, {"role": "user", "content": text}]
        body: dict[str, Any] = {"prompt": None, "file": None, "messages": [*system, *asked]}
        invoke = config.invoke.model_copy(update=body | ({"model": self.model} if self.model else {}))
        form = "vllm" if self.model else target.server
        payload = build_payload(invoke, form, stream=True)
        seconds = config.deployment.request_timeout_ms / 1000
        raw = score(
            target.scoring_uri, payload, timeout_s=seconds, key=target.key, log=target.log or None, on_piece=on_piece
        )
        answer = read_answer(raw, "score", target.scoring_uri)
        self.said = [*asked, {"role": "assistant", "content": answer.output}]
        return answer


def run(context: Context) -> Made:
    """Read questions until the input ends, and print what each model thinks and answers.

    Raises:
        StageError: the endpoint is not running, or is gone.
    """
    config, target = context.config, context.platform.target()
    if target is None:
        what = f"the endpoint {config.deployment.endpoint_name} is not running"
        raise StageError(what, cure="stage=deploy,chat")
    chats = [Chat(name, system_message(config.dataset)) for name in _models(config)]
    folded, asked = False, 0
    if target.page:
        context.say(f"in a browser: {target.page}")
    context.say("; ".join(f"{command}: {does}" for command, does in COMMANDS.items()))
    for line in _lines():
        if line == "/quit":
            break
        if line == "/reset":
            chats = [Chat(chat.model, chat.system) for chat in chats]
            context.say("forgotten")
        elif line == "/fold":
            folded = not folded
            context.say("thinking is hidden" if folded else "thinking is shown")
        elif line.startswith("/"):
            context.say(f"no such command; there are {', '.join(COMMANDS)}")
        else:
            asked += 1
            for chat in chats:
                _answer(chat, line, context, target, folded)
    return Made("1 question" if asked == 1 else f"{asked} questions")


def _models(config: Config) -> list[str | None]:
    """The models to ask: the one that is named, or the base and its adapters; None is whatever is deployed."""
    if config.invoke.model:
        return [config.invoke.model]
    adapters = list(config.deployment.adapters)
    return [config.model.name, *adapters] if adapters else [None]


def _lines() -> Iterator[str]:
    """What is typed, or piped, without blank lines; Ctrl-C at the prompt ends it."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if text := line.strip():
                if not text.startswith("/"):
                    label = f"{'':{INDENT}}{set_cell_size(said('question'), 10)}"
                    console().print(Text.assemble((label, "dim"), printable(text)), soft_wrap=True)
                yield text
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history, where the system has it
    while True:
        try:
            text = input(f"{'':{INDENT}}> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text:
            yield text


def _answer(chat: Chat, text: str, context: Context, target: Target, folded: bool) -> None:
    """Print one model's answer as it comes; an error and Ctrl-C end the answer, not the chat."""
    printed = Labelled(console())
    if chat.model:
        printed.add("model", chat.model)

    def add(kind: str, piece: str) -> None:
        if not (folded and kind == "thinking"):
            printed.add(kind, piece)

    try:
        answer = chat.ask(text, context.config, target, add)
        for call in answer.calls:
            printed.add("call", call)
        cut_off = "cut off at invoke.max_new_tokens" if answer.finish_reason == "length" else ""
        if note := "; ".join(filter(None, (answer.note, cut_off))):
            printed.add("note", note)
    except NotAnswering:
        raise
    except StageError as error:
        printed.add("error", error.what)
    except KeyboardInterrupt:
        printed.add("note", "stopped")
    finally:
        printed.end()
