"""The same held-out questions without 'reasoning language: …': exactly the prompts of a preparation without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.prepared import Prepared, prepare_rows

from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.evaluation.language_line import heldout_without_line, task_without_line
from ftkit.evaluation.questions import Question, heldout_questions, task_questions
from ftkit.models.loading import load_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "東京"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CHATS = [
    [{"role": "system", "content": system}] * bool(system)
    + [
        {"role": "user", "content": f"{place}の天気は？"},
        {"role": "assistant", "thinking": "調べる。", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "晴れ"},
        {"role": "assistant", "thinking": "晴れ。", "content": "晴れです。"},
    ]
    for place, system in (
        ("東京駅前", "Reasoning: high"),
        ("大阪城公園", "短く答えてください。"),
        ("長崎", ""),
        ("那覇", ""),
    )
]
HELD_OUT = ("dataset.heldout=0.9", "dataset.near_duplicates=1")


def prepared(folder: Path, *overrides: str) -> tuple[Prepared, list[Question]]:
    folder.mkdir()
    rows = [{"messages": chat, "tools": [TOOL]} for chat in CHATS]
    made = prepare_rows(rows, folder, "messages", *HELD_OUT, *overrides)
    return made, heldout_questions(made.folder / "reasoning_harmony.parquet", made.folder / "tokens.parquet", 9)


def configured(folder: Path, *overrides: str) -> Config:
    path = f"dataset.path={folder / 'rows.jsonl'}"
    return resolve(["experiment=tiny", "stage=plan", "dataset=messages", path, *overrides])


@pytest.mark.parametrize("persona", ["dataset.persona=null", "dataset.persona=あなたは案内係です。"])
def test_prompts_are_those_of_a_preparation_without_the_line(persona: str, tmp_path: Path) -> None:
    """Whatever else the rows bring: tools, a persona, an effort of their own, earlier turns."""
    made, told = prepared(tmp_path / "told", persona)
    _, untold = prepared(tmp_path / "untold", persona, "dataset.reasoning_language=null")
    config = configured(tmp_path / "told", persona)
    tokenizer = load_tokenizer(config.model)
    found = heldout_without_line(told, made.folder / "reasoning_harmony.parquet", config, tokenizer)
    assert len(found) == len(told) >= 3
    assert {q.row: q.prompt for q in found} == {q.row: q.prompt for q in untold}
    assert all("reasoning language" not in tokenizer.decode(q.prompt) for q in found)
    assert all("reasoning language: Japanese" in tokenizer.decode(q.prompt) for q in told)
    assert any("Reasoning: high" in tokenizer.decode(q.prompt) for q in found)


def test_a_file_of_questions_is_asked_without_the_line(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("question\tanswer\n東京は？\t首都\n", encoding="utf-8")
    config = resolve(["experiment=tiny", "stage=plan", f"evaluation.path={path}"])
    tokenizer = load_tokenizer(config.model)
    (told,), (untold,) = task_questions(path, config, tokenizer), task_without_line(path, config, tokenizer)
    texts = [tokenizer.decode(question.prompt) for question in (told, untold)]
    assert "reasoning language: Japanese" in texts[0] and "reasoning language" not in texts[1]
    assert untold == replace(told, prompt=untold.prompt)


def test_without_a_line_to_leave_out_it_says_so(tmp_path: Path) -> None:
    made, told = prepared(tmp_path / "told", "dataset.reasoning_language=null")
    config = configured(tmp_path / "told")
    with pytest.raises(StageError, match="no prompt has a line 'reasoning language: …'") as refused:
        heldout_without_line(told, made.folder / "reasoning_harmony.parquet", config, load_tokenizer(config.model))
    assert refused.value.cure == "evaluation.without_language_line=false"
