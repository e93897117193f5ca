"""stage=chat, with the endpoint of the tiny run."""

from __future__ import annotations

import re

import pytest
from helpers.command import FinishedRun

from ftkit.chat.messages import system_message
from ftkit.config.resolve import resolve
from ftkit.pipeline.lineage import folder_of
from ftkit.platforms.local.platform import Local
from ftkit.stages.chat import Chat

METRES = "3メートルは何センチメートルですか？"


def test_piped_questions_are_answered_one_after_the_other(finished_run: FinishedRun):
    lines = [METRES, "", "/nonsense", "/fold", METRES, "/reset", "/quit", "never asked"]
    done = finished_run.ftkit("stage=chat", piped="\n".join(lines))
    assert done.status == 0, done.err
    labels = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert [label for label in labels if label in ("question", "thinking", "answer")] == [
        *("question", "thinking", "answer"),
        *("thinking", "question", "answer"),  # the first says that thinking is folded from here on
    ]
    assert "300" in done.out and "no such command; there are /reset, /fold, /quit" in done.out
    page = re.search(r"in a browser: (http://127.0.0.1:\d+/chat)\n", done.out)
    assert page and f"a page to talk with it: {page[1]}\n" in finished_run.all.out
    assert "never asked" not in done.out and "2 questions" in done.out


def test_what_was_said_before_is_sent_again(finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(finished_run.folder)
    config = resolve(["experiment=tiny", "stage=chat"])
    target = Local(config, folder_of(config)).target()
    assert target
    chat, pieces = Chat(None, system_message(config.dataset)), []
    first = chat.ask(METRES, config, target, lambda kind, text: pieces.append((kind, text)))
    assert "".join(text for kind, text in pieces if kind == "output") == first.output
    second = chat.ask(METRES, config, target, lambda kind, text: None)
    assert [message["role"] for message in chat.said] == ["user", "assistant", "user", "assistant"]
    assert chat.said[1]["content"] == first.output
    assert first.prompt_tokens and second.prompt_tokens and second.prompt_tokens > first.prompt_tokens


def test_an_endpoint_that_does_not_run_is_said(ftkit):
    done = ftkit("experiment=tiny", "stage=chat", piped="x")
    assert done.status == 1 and "stage=prepare,publish,train,merge,register,deploy,chat" in done.err
