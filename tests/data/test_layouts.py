"""The examples of docs/data.md: each layout's rows give just the token rows that stand below them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.prepared import prepare_rows

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SECTIONS = re.split(r"^### ", PAGE.read_text(encoding="utf-8").partition("## Layouts")[2], flags=re.MULTILINE)[1:]
EXAMPLES = {section.splitlines()[0]: section for section in SECTIONS if "```json" in section}


def block(section: str, language: str) -> str:
    return section.split(f"```{language}\n")[1].split("```")[0]


def test_every_layout_has_an_example():
    names = ("Question and answer", "Prompt and completion", "Alpaca", "Chats", "Tools", "ShareGPT", "Hermes")
    assert tuple(EXAMPLES) == names


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_gives_the_rows_below_it(name: str, tmp_path: Path, tiny):
    section = EXAMPLES[name]
    command = shlex.split(block(section, "console").removeprefix("$ "))
    settings = [word for word in command[4:] if not word.startswith("dataset.path=")]
    option = settings.pop(0).removeprefix("dataset=")
    rows = [json.loads(line) for line in block(section, "json").splitlines()]
    texts = prepare_rows(rows, tmp_path, option, *settings).texts(tiny)
    lines = [line.replace("↵", "\n") for line in block(section, "text").splitlines()]
    shown = list(zip(lines[::2], lines[1::2], strict=True))
    assert len(texts) == len(shown)
    for (prompt, trained), (prompt_shown, trained_shown) in zip(texts, shown, strict=True):
        assert prompt.endswith(prompt_shown) and trained == trained_shown.removeprefix("→ ")
