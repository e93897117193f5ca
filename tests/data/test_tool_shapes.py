"""Tools, their calls and results as people keep them: every form becomes the same conversation."""

from __future__ import annotations

import json

import pytest
from helpers.tool_chats import ANSWER, CALLED, PLAIN, RESULT, SCHEMA, TOOL, USER, WRAPPED, call, openai

from ftkit.data.refused import Account
from ftkit.data.tool_calls import PROPERTIES_ALONE, UNKNOWN, WRITTEN_OUT

HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "東京"}}\n</tool_call>'
HERMES_SYSTEM = f"あなたは秘書です。<tools>[{json.dumps(WRAPPED, ensure_ascii=False)}]</tools>"


@pytest.mark.parametrize(
    ("option", "row"),
    [
        pytest.param(
            "messages",
            {
                "tools": [WRAPPED],
                "messages": [
                    USER,
                    openai(content=None, reasoning_content="調べる。"),
                    {"role": "tool", "tool_call_id": "c1", "content": "晴れ"},
                    ANSWER,
                ],
            },
            id="openai",
        ),
        pytest.param(
            "messages",
            {
                "tools": json.dumps([WRAPPED]),
                "messages": json.dumps([USER, openai({"city": "東京"}, thinking="調べる。"), RESULT, ANSWER]),
            },
            id="trl_as_json_text",
        ),
        pytest.param(
            "messages",
            {
                "tools": [{"type": "function", "function": TOOL | {"strict": None}}],
                "messages": [USER, openai({"city": "東京", "unit": None}, thinking="調べる。"), RESULT, ANSWER],
            },
            id="trl_from_arrow_with_the_keys_of_other_rows",
        ),
        pytest.param(
            "messages",
            {
                "tools": [TOOL],
                "messages": [
                    USER,
                    {"role": "assistant", "channel": "analysis", "content": "調べる。"},
                    {
                        "role": "assistant",
                        "channel": "commentary",
                        "recipient": "functions.get_weather",
                        "content": '{"city": "東京"}',
                    },
                    {"role": "tool", "name": "functions.get_weather", "content": "晴れ"},
                    ANSWER,
                ],
            },
            id="harmony_channels",
        ),
        pytest.param(
            "sharegpt",
            {
                "tools": json.dumps([TOOL]),
                "conversations": [
                    {"from": "human", "value": "東京の天気は？"},
                    {
                        "from": "function_call",
                        "value": '<think>調べる。</think>{"name": "get_weather", "arguments": {"city": "東京"}}',
                    },
                    {"from": "observation", "value": "晴れ"},
                    {"from": "gpt", "value": "<think>晴れ。</think>晴れです。"},
                ],
            },
            id="sharegpt",
        ),
        pytest.param(
            "sharegpt",
            {
                "tools": json.dumps([WRAPPED]),
                "conversations": [
                    {"from": "human", "value": "東京の天気は？"},
                    {"from": "gpt", "value": f"<think>\n調べる。\n</think>\n{HERMES_CALL}"},
                    {"from": "tool", "value": "<tool_response>\n晴れ\n</tool_response>\n"},
                    {"from": "gpt", "value": "<think>晴れ。</think>晴れです。"},
                ],
            },
            id="hermes",
        ),
    ],
)
def test_tools_of_every_form_become_the_same_conversation(convert, option: str, row: dict):
    conversation = convert(option, row)
    assert conversation.messages == [USER, CALLED, RESULT, ANSWER] and conversation.tools == [TOOL]


def test_hermes_tools_move_from_the_system_message_to_the_block_for_tools(convert):
    chat = [{"role": "system", "content": HERMES_SYSTEM}, USER, CALLED, RESULT, ANSWER]
    account = Account()
    conversation = convert("messages", {"messages": chat}, account=account)
    assert conversation.tools == [TOOL] and conversation.messages[0]["content"] == "あなたは秘書です。"
    assert "moved from the system message" in next(iter(account.remarks))


def test_several_calls_of_one_message_are_written_one_after_another_with_their_results(convert):
    calls = [call(name="a") | {"id": "1"}, call(name="b") | {"id": "2"}]
    results = [{"role": "tool", "tool_call_id": n, "content": text} for n, text in (("2", "二"), ("1", "一"))]
    first = {"role": "assistant", "thinking": "両方。", "content": None, "tool_calls": calls}
    chat = convert("messages", {"messages": [USER, first, *results, ANSWER]}).messages
    assert chat[1:-1] == [
        {"role": "assistant", "thinking": "両方。", "content": "", "tool_calls": [call(name="a")]},
        {"role": "tool", "name": "a", "content": "一"},
        {"role": "assistant", "content": "", "tool_calls": [call(name="b")]},
        {"role": "tool", "name": "b", "content": "二"},
    ]


def test_text_before_a_call_stays_with_it(convert):
    said = CALLED | {"content": "調べます。"}
    assert convert("messages", {"messages": [USER, said]}).messages == [USER, said]
    apart = [{"role": "assistant", "content": "<think>調べる。</think>調べます。"}, PLAIN]
    assert convert("messages", {"messages": [USER, *apart]}).messages == [USER, said]


def test_a_call_need_not_think_where_answers_must(convert):
    account = Account()
    chat = convert("messages", {"messages": [USER, PLAIN, RESULT, ANSWER]}, account=account).messages
    assert chat == [USER, PLAIN, RESULT, ANSWER] and "tool calls without thinking" in next(iter(account.remarks))


@pytest.mark.parametrize(
    "call_keys",
    [
        {"function_call": {"name": "get_weather", "arguments": '{"city": "東京"}'}},
        {"tool_calls": [{"name": "get_weather", "arguments": None, "parameters": {"city": "東京"}}]},
        {"tool_calls": [call()], "function_call": {"name": "get_weather", "arguments": '{"city": "東京"}'}},
        {"tool_calls": [call()], "recipient": "all"},
    ],
    ids=["one alone", "null beside", "the same twice", "to all"],
)
def test_a_call_under_each_of_its_keys_is_the_same_call(convert, call_keys: dict):
    asked = {"role": "assistant", "content": None, "thinking": "調べる。"} | call_keys
    assert convert("messages", {"messages": [USER, asked, RESULT, ANSWER]}).messages == [USER, CALLED, RESULT, ANSWER]


@pytest.mark.parametrize(
    ("content", "text"), [(25, "25"), (0, "0"), (True, "true"), ([1, "晴れ"], '[1, "晴れ"]'), ({}, ""), (None, "")]
)
def test_a_result_that_is_no_text_is_its_json(convert, content, text: str):
    chat = convert("messages", {"messages": [USER, CALLED, RESULT | {"content": content}, ANSWER]}).messages
    assert chat[2]["content"] == text


def test_keys_beside_a_wrapped_function_and_names_of_assistants_are_counted(convert):
    account = Account()
    tool = WRAPPED | {"description": "外側", "parameters": {"type": "object"}}
    called = CALLED | {"name": "秘書", "tool_calls": [call() | {"arguments": {"city": "大阪"}}]}
    convert("messages", {"messages": [USER, called, RESULT, ANSWER], "tools": [tool]}, account=account)
    keys = {"tools.description": 1, "tools.parameters": 1, "name": 1, "tool_calls.arguments": 1}
    assert account.unused_keys == keys


def test_keys_of_tools_and_of_parts_that_are_not_used_are_counted(convert):
    account = Account()
    tool = {"type": "function", "strict": False, "function": TOOL | {"strict": True, "return": {"type": "string"}}}
    called = CALLED | {"tool_calls": [call() | {"id": "1", "index": 0, "result": "晴れ"}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]}
    convert("messages", {"messages": [asked, called, RESULT, ANSWER], "tools": [tool]}, account=account)
    assert account.unused_keys == {
        "tools.strict": 1, "tools.return": 1, "tool_calls.result": 1, "content.cache_control": 1
    }  # fmt: skip


def test_parameters_of_a_tool_that_are_properties_alone_are_an_object_s(convert):
    account = Account()
    tool = TOOL | {"parameters": SCHEMA["properties"]}
    found = convert("messages", {"messages": [USER, CALLED, RESULT, ANSWER], "tools": [tool]}, account=account)
    assert found.tools[0]["parameters"] == {"type": "object", "properties": SCHEMA["properties"]}
    assert account.remarks == {PROPERTIES_ALONE: 1}


def test_a_call_of_a_function_that_is_not_there_is_said(convert):
    account = Account()
    other = CALLED | {"tool_calls": [call(name="other")]}
    convert("messages", {"messages": [USER, other], "tools": [TOOL]}, account=account)
    convert("messages", {"messages": [USER, other]}, account=account)
    assert account.remarks == {UNKNOWN: 1}


@pytest.mark.parametrize("text", ['{"name": "get_weather", "arguments": {}}', '[{"name": "get_weather"}]'])
def test_an_answer_that_is_the_json_of_a_call_is_said(convert, text: str):
    account = Account()
    for content in (text, '{"name": "太郎"}', "[1]", "{"):
        answer = {"role": "assistant", "thinking": "t", "content": content}
        convert("messages", {"messages": [USER, answer], "tools": [TOOL]}, account=account)
    assert account.remarks == {WRITTEN_OUT: 1}
