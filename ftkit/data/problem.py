"""What generated rows are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question with its answer and the thinking that leads there, in both languages.

    Attributes:
        question: Japanese.
        thinking_ja: the reasoning in Japanese.
        thinking_en: the same reasoning in English.
        answer: Japanese, one sentence.
        question_type: the kind, as ``ftkit.data.sample.KINDS`` names it.
        answer_format: ``number``, ``date``, ``choice``, ``name`` or ``yes-no``.
    """

    question: str
    thinking_ja: str
    thinking_en: str
    answer: str
    question_type: str
    answer_format: str

    def row(self) -> dict[str, str]:
        """The problem with Japanese thinking, as a row of APTO's data set has it."""
        return {
            "question": self.question,
            "answer": f"<think>{self.thinking_ja}</think>{self.answer}",
            "question_type": self.question_type,
            "answer_format": self.answer_format,
            "dialogue_type": "request" if self.question.endswith("ください。") else "question",
        }
