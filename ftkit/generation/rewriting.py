"""Right thinking in another language, written anew in the wanted one by the model that thought it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from ftkit.chat.messages import Conversation
from ftkit.config.generation import Generate
from ftkit.evaluation.measures import Answer
from ftkit.generation.questions import Item
from ftkit.generation.sifting import KEPT, LANGUAGE, Sifted
from ftkit.generation.sources import Writing

PARTS = ("question", "thinking", "answer")
"""What ``generate.rewrite`` may have in braces."""


def rewritten(
    sifted: Sifted, items: Sequence[Item], writing: Writing, tokens_of: Callable[[str], int]
) -> dict[int, Answer]:
    """Answers with their thinking written anew, by their place; as many of a question as may still be kept.

    Args:
        items: the questions.
        writing: who writes.
        tokens_of: counts a text's tokens.
    """
    places = _wanted(sifted, writing.settings)
    efforts = {item.row: item.conversation.reasoning_effort for item in items}
    asked = [_request(sifted.answers[place], writing.settings, efforts) for place in places]
    found = writing.answers(asked, [[sifted.answers[place].sample] for place in places])
    return {place: _taken(sifted.answers[place], new, tokens_of) for place, new in zip(places, found, strict=True)}


def _wanted(sifted: Sifted, settings: Generate) -> list[int]:
    of_question = Counter(answer.row for answer in sifted.with_verdict(KEPT))
    places = []
    for place, (answer, verdict) in enumerate(zip(sifted.answers, sifted.verdicts, strict=True)):
        if verdict == LANGUAGE and of_question[answer.row] < settings.keep:
            of_question[answer.row] += 1
            places.append(place)
    return places


def _request(answer: Answer, settings: Generate, efforts: dict[int, str]) -> Conversation:
    text = settings.rewrite or ""
    for name, value in zip(PARTS, (answer.question, answer.thinking, answer.output), strict=True):
        text = text.replace(f"{{{name}}}", value)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer.output}]
    return Conversation(answer.row, messages, efforts[answer.row], {})


def _taken(answer: Answer, new: Answer, tokens_of: Callable[[str], int]) -> Answer:
    """The answer with what was written for its thinking; one that was cut off or broken makes it so."""
    thinking = new.output.strip()
    return replace(
        answer,
        thinking=thinking,
        thinking_tokens=tokens_of(thinking),
        finished=new.finished,
        parses=answer.parses and new.parses,
        tokens=answer.tokens + new.tokens,
        seconds=answer.seconds + new.seconds,
    )
