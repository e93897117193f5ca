"""lm-eval's harness in a process of its own, which ``harness`` starts under an interpreter that needs lm-eval alone.

It imports nothing of ftkit. Each line on stdin and stdout is a JSON object: first the settings, answered by ``ready``
or ``unknown``; then for each ``evaluate`` as many ``ask`` as the task needs, each answered by ``answers``, and a
``result``. What lm-eval itself prints goes to stderr. When stdin ends, so does the process.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from importlib.metadata import version
from queue import SimpleQueue
from typing import Any

from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

SAMPLING = {"top_p": (None, 1, 1.0), "top_k": (None, 0), "min_p": (None, 0, 0.0)}
"""How answers can be drawn besides by temperature, and the values that change nothing."""


class Line:
    """The other process."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._in: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            self._in.put(json.loads(line))
        os._exit(0)

    def receive(self) -> dict[str, Any]:
        return self._in.get()

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


class AskingModel(LM):
    """A model that is asked in the other process. A context is the chat as JSON, which the task may add text to."""

    def __init__(self, line: Line, system: str):
        super().__init__()
        self._line, self._system = line, system

    @property
    def tokenizer_name(self) -> str:
        return "harmony"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps([{"role": turn["role"], "content": turn["content"]} for turn in chat_history])

    def generate_until(self, requests: list[Any]) -> list[str]:
        asked = [
            {"messages": self._chat(context), "temperature": temperature(settings)}
            for context, settings in (request.args for request in requests)
        ]
        answers = self._ask("generate", asked)
        return [before(a, stops(request.args[1])) for a, request in zip(answers, requests, strict=True)]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        asked = [
            {"messages": self._chat(context) if context else [], "continuation": continuation}
            for context, continuation in (request.args for request in requests)
        ]
        return [(float(sum_), bool(greedy)) for sum_, greedy in self._ask("loglikelihood", asked)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self._ask("rolling", [{"text": request.args[0]} for request in requests])

    def _chat(self, context: str) -> list[dict[str, str]]:
        """The chat of a context; one that no template has made is the user's message."""
        try:
            chat, end = json.JSONDecoder().raw_decode(context)
            chat[-1]["content"] += context[end:]
        except (ValueError, TypeError, KeyError, IndexError):
            before = [{"role": "system", "content": self._system}] if self._system else []
            return [*before, {"role": "user", "content": context}]
        return chat

    def _ask(self, kind: str, requests: list[dict[str, Any]]) -> list[Any]:
        self._line.send(ask=kind, requests=requests)
        return self._line.receive()["answers"]


def temperature(settings: dict[str, Any]) -> float:
    """Of a task's ``generation_kwargs``; 0 takes the likeliest token.

    Raises:
        ValueError: they draw in another way.
    """
    given = float(settings.get("temperature") or 0)
    if not settings.get("do_sample", given > 0):
        return 0.0
    if other := [name for name, same in SAMPLING.items() if settings.get(name) not in same]:
        raise ValueError(f"the task draws with {other[0]}={settings[other[0]]}; ftkit draws by temperature alone")
    return given or 1.0


def stops(settings: dict[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def before(text: str, stops: Iterable[str]) -> str:
    """The text up to where the first of the stops begins."""
    return text[: min((at for at in (text.find(stop) for stop in stops if stop) if at >= 0), default=len(text))]


def figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Each metric of each task and group, and for a mean over questions its value for each."""
    found = []
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            found.append({
                "task": task,
                "metric": metric if filtered == "none" else f"{metric}.{filtered}",
                "value": value,
                "stderr": error if is_number(error) else None,
                "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                "questions": results["n-samples"].get(task, {}).get("effective"),
                "each": each(results["samples"].get(task, []), metric, filtered, value),
            })  # fmt: skip
    return found


def each(samples: list[dict[str, Any]], metric: str, filtered: str, mean: float) -> list[float] | None:
    """The metric's value for each question; None where the figure is no mean of them."""
    rows = sorted((s for s in samples if s["filter"] == filtered), key=lambda s: s["doc_id"])
    numbers = [float(row[metric]) for row in rows if isinstance(row.get(metric), (int, float))]
    if not rows or len(numbers) < len(rows):
        return None
    return numbers if math.isclose(sum(numbers) / len(numbers), mean, abs_tol=1e-9) else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def main() -> None:
    line = Line()
    settings = line.receive()
    manager = TaskManager(include_path=settings["include_path"])
    known = set(manager.all_tasks)
    if unknown := [name for name in settings["tasks"] if name not in known]:
        line.send(unknown=unknown, known=sorted(known))
        return
    for name in settings["tasks"]:
        manager.load([name])  # now, and not when hours of answers have been given
    line.send(ready=version("lm-eval"))
    model = AskingModel(line, settings["system"])
    while True:
        results = simple_evaluate(
            model,
            tasks=[line.receive()["evaluate"]],
            num_fewshot=settings["num_fewshot"],
            limit=settings["limit"],
            task_manager=manager,
            system_instruction=settings["system"] or None,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
        line.send(result=figures(results))


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # the thread that reads stdin would abort what the interpreter winds down
