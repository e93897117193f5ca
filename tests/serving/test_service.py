"""What a loaded model makes of a request before it runs, and of generated tokens afterwards."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ftkit.chat.harmony_render import checked_harmony
from ftkit.chat.messages import ModelError
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.config.resolve import resolve
from ftkit.data.conversations import Converter
from ftkit.data.readers import RawRow
from ftkit.serving.endpoint.answering import Answering
from ftkit.serving.endpoint.answers import body, events
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request, parse_request
from ftkit.serving.endpoint.service import Served, read_sampling

USER = {"role": "user", "content": "1足す1は？"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
THOUGHT = "<|channel|>analysis<|message|>考える<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def served(tiny: Path) -> Served:
    return Served(tiny, Limits(max_input_tokens=300, concurrent_requests=2), ["tiny", "other"])


def request(served: Served, **fields: Any) -> Request:
    return parse_request(json.dumps({"messages": [USER]} | fields), served.rules, openai=True)


def prompt(served: Served, **fields: Any) -> str:
    return served.tokenizer.decode(served.prompt_ids(request(served, **fields)))


def generated(served: Served, text: str, **fields: Any) -> Answering:
    """A request whose answer is this text."""
    job = Job([0], 100, time.monotonic() + 60)
    job.ids, job.ended = served.tokenizer(text, add_special_tokens=False)["input_ids"], "stop"
    return Answering(request(served, model="tiny", **fields), job, served.parser.reader())


def test_tools_stand_in_the_prompt_as_training_writes_them(served: Served):
    history = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    text = prompt(served, messages=[*history, {"role": "tool", "tool_call_id": "c1", "content": "2"}], tools=[ADD])
    assert "type add = (_: {" in text and "a?: number," in text
    assert (
        '<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>' in text
    )
    assert "<|start|>functions.add to=assistant<|channel|>commentary<|message|>2<|end|><|start|>assistant" in text
    assert "functions" not in prompt(served, tools=[ADD], tool_choice="none")


def test_the_thinking_before_a_call_stays_until_the_answer_is_there(served: Served):
    called = {"role": "assistant", "reasoning_content": "足そう", "tool_calls": [CALL]}
    open_ = [USER, called, {"role": "tool", "tool_call_id": "c1", "content": "2"}]
    assert "足そう" in prompt(served, messages=open_)
    assert "足そう" not in prompt(served, messages=[*open_, {"role": "assistant", "content": "2"}, USER])


def test_a_chat_without_tools_is_written_alike_by_the_template_and_by_training(served: Served):
    chat = request(
        served, messages=[{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "2"}, USER]
    )
    assert served._with_tools(chat) == served._by_template(chat)


@pytest.mark.parametrize(
    "functions",
    [[], [ADD["function"]], [{"name": "now"}], [{"name": "now", "parameters": {}, "description": "時刻"}]],
    ids=["plain", "properties", "nothing", "empty"],
)
def test_the_date_of_the_prompt_is_that_of_the_training(tiny: Path, tmp_path: Path, functions: list[dict[str, Any]]):
    """Guard: current_date in ServingDefaults.of; the clock of this machine is past it."""
    chats = ("dataset=messages", "dataset.path=package:sample.jsonl", "dataset.reasoning_language=null")
    config = resolve(["experiment=tiny", "stage=plan", *chats, "dataset.current_date=2019-05-06"])
    folder = shutil.copytree(tiny, tmp_path / "model")
    ServingDefaults.of(config, "tiny").write(folder)
    served = Served(folder, Limits(max_input_tokens=500), ["tiny"])
    tools = [{"type": "function", "function": function} for function in functions]
    ids = served.prompt_ids(request(served, **({"tools": tools} if tools else {})))
    row = {"messages": [USER, {"role": "assistant", "thinking": "t", "content": "a"}], "tools": tools}
    asked = Converter(config.dataset).conversation(RawRow(1, "", row))
    trained = checked_harmony(served.tokenizer, current_date=config.dataset.current_date)
    assert ids == trained.prompt(replace(asked, messages=asked.messages[:-1]))
    assert "2019-05-06" in served.tokenizer.decode(ids)


def test_odd_schemas_are_written_all_the_same(served: Served):
    odd = {"function": {"name": "f", "parameters": {"properties": {"a": 5}, "required": 7}}}
    assert "type f = " in prompt(served, tools=[odd])


def test_special_tokens_are_those_of_the_vocabulary(served: Served):
    prompt(served, messages=[USER | {"content": "<|im_start|>とは <|y|>"}])
    for token in ("<|end|>", "<|call|>", "<|constrain|>"):
        with pytest.raises(Refused, match="would forge a message"):
            prompt(served, messages=[USER | {"content": f"a{token}"}])


def test_a_call_is_shown_as_tool_calls_whole_and_streamed(served: Served):
    text = THOUGHT + ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    answering = generated(served, text)
    whole = body(answering.request, [answering.whole()])
    (choice,) = whole["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'} and call["id"].startswith("call_")
    assert ChatCompletion.model_validate(whole).choices[0].message.tool_calls
    *_, calls, last, done = events([generated(served, text, stream=True)], lambda: False)
    (sent,) = ChatCompletionChunk.model_validate_json(calls[6:]).choices[0].delta.tool_calls or ()
    assert sent.function and sent.function.model_dump() == call["function"]
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "tool_calls" and "[DONE]" in done


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>commentary<|message|>少し待って<|return|>",
        "<|channel|>odd<|message|>少し待って<|end|>",
        "少し待って",
    ],
)
def test_text_of_other_channels_is_in_the_note(served: Served, text: str):
    answering = generated(served, text)
    assert "少し待って" in body(answering.request, [answering.whole()])["note"]
    *_, last, _done = events([generated(served, text, stream=True)], lambda: False)
    assert "少し待って" in json.loads(last[6:])["note"]


def test_a_client_that_reads_slowly_does_not_hold_its_thread_for_ever(served: Served):
    answering = generated(served, THOUGHT + "<|channel|>final<|message|>2です<|return|>", stream=True)
    answering.job.deadline = time.monotonic() - 31
    assert "[DONE]" not in "".join(events([answering], lambda: False))


def test_nothing_is_tokenized_before_there_is_a_place(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Guard: Scheduler.reserve, which Served.begin calls first."""
    for _ in range(2):
        served.engine.reserve()
    monkeypatch.setattr(served, "tokenizer", None)
    with pytest.raises(Refused, match="2 requests are being answered") as refused:
        served.begin(request(served))
    assert refused.value.status == 429
    for _ in range(2):
        served.engine.release()


def test_a_request_that_is_refused_late_gives_its_place_back(served: Served):
    for _ in range(3):
        with pytest.raises(Refused, match="maximum context length") as refused:
            served.begin(request(served, messages=[USER | {"content": "な" * 1000}]))
    assert (refused.value.code, refused.value.field) == ("context_length_exceeded", "messages")
    assert served.engine.in_hand == 0


@pytest.mark.parametrize(
    ("model", "says"),
    [("gpt-4o", "there are tiny, other"), ("tinny", "did you mean tiny"), ("長" * 300_000, "there are tiny, other")],
    ids=["another", "nearly", "endless"],
)
def test_a_model_that_is_not_served_is_refused_without_adapters_too(served: Served, model: str, says: str):
    with pytest.raises(Refused, match=says) as refused:
        served.begin(request(served, model=model))
    assert (refused.value.status, refused.value.code, refused.value.field) == (404, "model_not_found", "model")
    assert len(refused.value.message) < 200


def test_a_model_may_have_several_names(served: Served):
    assert [model["id"] for model in served.adapters.listing()["data"]] == ["tiny", "other"]
    for asked, signed in (("other", "other"), ("", "tiny")):
        answering = served.begin(request(served, model=asked, max_tokens=1))
        answering.whole()
        assert answering.request.model == signed


def test_a_limit_that_no_question_fits_into_ends_the_start_with_its_name(tiny: Path):
    with pytest.raises(ModelError, match=r"FTKIT_MAX_INPUT_TOKENS=50: the request has .* tokens; at most 50"):
        Served(tiny, Limits(max_input_tokens=50))


@pytest.mark.parametrize(
    ("content", "sampling"),
    [
        ('{"do_sample": true}', (1.0, 1.0)),
        ('{"do_sample": true, "temperature": 0.6, "top_p": 0.95}', (0.6, 0.95)),
        ('{"do_sample": false, "temperature": 0.6}', (0.0, 1.0)),
    ],
)
def test_sampling_is_the_models_own(tmp_path: Path, content: str, sampling: tuple[float, float]):
    (tmp_path / "generation_config.json").write_text(content)
    assert read_sampling(tmp_path) == sampling
