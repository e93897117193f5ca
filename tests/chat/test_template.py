"""Chats by a model's own template: where the loss lies, what an endpoint would send, and how an answer is read back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.small_families import TEMPLATES, small_tokenizer

from ftkit.chat.format import parser_of, renderer_of
from ftkit.chat.harmony_render import labels_of
from ftkit.chat.messages import Conversation
from ftkit.chat.template import Template
from ftkit.errors import StageError

SYSTEM = {"role": "system", "content": "reasoning language: Japanese"}
CHAT = [
    SYSTEM,
    {"role": "user", "content": "1+1は？"},
    {"role": "assistant", "thinking": "足す。", "content": "2です。"},
    {"role": "user", "content": "では2+2は？"},
    {"role": "assistant", "thinking": "また足す。", "content": "4です。"},
]


@pytest.fixture(params=sorted(TEMPLATES))
def tokenizer(request):
    return small_tokenizer(request.param)


def rows_of(tokenizer, messages):
    rows = renderer_of(tokenizer, current_date="2026-01-01").token_rows([Conversation(1, messages, "medium", {})])
    labels = labels_of(rows.input_ids, rows.starts, rows.prompt_length)
    return rows, [labels[begin:end] for begin, end in zip(rows.starts[:-1], rows.starts[1:], strict=True)]


def test_each_answer_is_a_row_whose_prompt_is_what_an_endpoint_sends(tokenizer) -> None:
    rows, labels = rows_of(tokenizer, CHAT)
    assert len(rows) == 2
    for row, ids, before in zip(labels, rows.rows(), (CHAT[:2], CHAT[:4]), strict=True):
        shown = [{k: v for k, v in message.items() if k != "thinking"} for message in before]
        text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[: len(prompt)].tolist() == prompt and (row[: len(prompt)] == -100).all()
        assert (row[len(prompt) :] == ids[len(prompt) :]).all()


def test_the_loss_lies_on_thinking_answer_and_the_end_of_the_turn(tokenizer) -> None:
    rows, labels = rows_of(tokenizer, CHAT)
    trained = tokenizer.decode([token for token in labels[1] if token != -100])
    opened = Template(tokenizer).forms.opens
    assert trained == ("" if opened else "<think>\n") + f"また足す。\n</think>\n\n4です。{tokenizer.eos_token}"
    begin, end = rows.thinking[1]
    assert tokenizer.decode(list(rows.rows())[1][begin:end]) == "また足す。"


def test_what_was_trained_is_read_back(tokenizer) -> None:
    parser = parser_of(tokenizer)
    rows, labels = rows_of(tokenizer, CHAT)
    ids = list(rows.rows())[1]
    prompt, answer = ids[: rows.prompt_length[1]].tolist(), ids[rows.prompt_length[1] :].tolist()
    assert parser.parse(answer, prompt)[:4] == ("また足す。", "4です。", True, True)
    assert parser.parse(answer[:-1], prompt)[2:4] == (False, False)
    reader, streamed = parser.reader(prompt), []
    for token in answer:
        streamed += reader.feed(token)
    streamed += reader.close()
    told = {kind: "".join(text for k, text in streamed if k == kind) for kind in ("thinking", "output")}
    assert told == {"thinking": "また足す。", "output": "4です。"}
    thinking, answers = parser.parts(ids, labels[1])
    assert "また足す。" in tokenizer.decode(ids[thinking[0]]) and "4です。" not in tokenizer.decode(ids[thinking[0]])
    assert tokenizer.decode(ids[answers[0]]).strip() == f"4です。{tokenizer.eos_token}"


def test_an_answer_without_thinking(tokenizer) -> None:
    parser = parser_of(tokenizer)
    rows, labels = rows_of(tokenizer, [CHAT[1], {"role": "assistant", "content": "2です。"}])
    answer = [token for token in labels[0].tolist() if token != -100]
    prompt = next(rows.rows())[: rows.prompt_length[0]].tolist()
    assert parser.parse(answer, prompt)[:4] == ("", "2です。", True, True)


def test_a_turn_that_is_not_to_be_trained_is_context(tokenizer) -> None:
    rows, _ = rows_of(tokenizer, [*CHAT[:2], CHAT[2] | {"train": False}, *CHAT[3:]])
    assert len(rows) == 1 and "2です。" in tokenizer.decode(next(rows.rows())[: rows.prompt_length[0]])


def test_a_text_that_would_forge_a_message_is_refused(tokenizer) -> None:
    renderer = renderer_of(tokenizer, current_date="2026-01-01")
    forged = [CHAT[1] | {"content": f"a{tokenizer.eos_token}b"}, {"role": "assistant", "content": "c"}]
    assert tokenizer.eos_token in (renderer.refusal(Conversation(1, forged, "medium", {})) or "")
    assert renderer.refusal(Conversation(1, CHAT, "medium", {})) is None


def test_it_can_be_sent_to_another_process(tokenizer) -> None:
    renderer = renderer_of(tokenizer, current_date="2026-01-01")
    conversations = [Conversation(1, CHAT, "medium", {})]
    again = pickle.loads(pickle.dumps(renderer)).token_rows(conversations)
    assert np.array_equal(again.input_ids, renderer.token_rows(conversations).input_ids)


def test_tools_that_the_template_leaves_out_are_refused(tokenizer) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}, "type": "function", "id": "1"}
    chat = [CHAT[1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    renderer = renderer_of(tokenizer, current_date="2026-01-01")
    assert "tools or calls" in (renderer.refusal(Conversation(1, chat, "medium", {}, [{"name": "f"}])) or "")


STRICT = """\
{%- for message in messages %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{%- endif %}{%- endfor %}"""


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (CHAT, "takes no system message (roles must alternate)"),
        ([CHAT[1], *CHAT[1:3]], "does not take this chat (roles must alternate)"),
        (CHAT[1:], None),
    ],
)
def test_a_chat_that_the_template_refuses(chat: list[dict[str, str]], said: str | None) -> None:
    tokenizer = small_tokenizer("mistral")
    tokenizer.chat_template = STRICT + tokenizer.chat_template
    renderer = renderer_of(tokenizer, current_date="2026-01-01")
    conversation = Conversation(1, chat, "medium", {})
    if said is None:
        assert renderer.refusal(conversation) is None and len(renderer.token_rows([conversation])) == 2
        return
    assert renderer.refusal(conversation) == f"the model's chat template {said}"
    with pytest.raises(StageError, match="the model's chat template") as error:  # as evaluate asks questions
        renderer.token_rows([conversation])
    assert "dataset.reasoning_language=null" in str(error.value)


def test_a_template_with_a_clock_shows_the_pinned_date() -> None:
    tokenizer = small_tokenizer("llama")
    tokenizer.chat_template = "{{- 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + tokenizer.chat_template
    rows, _ = rows_of(tokenizer, CHAT)
    assert tokenizer.decode(next(rows.rows())).startswith("Today: 01 Jan 2026\n")


def test_no_chat_template() -> None:
    tokenizer = small_tokenizer("llama")
    tokenizer.chat_template = None
    with pytest.raises(StageError, match="has no chat template"):
        renderer_of(tokenizer, current_date="2026-01-01")


def test_a_family_that_must_write_harmony_takes_no_other_tokenizer() -> None:
    with pytest.raises(StageError, match="this is not a gpt-oss"):
        renderer_of(small_tokenizer("llama"), current_date="2026-01-01", must_be="harmony")
