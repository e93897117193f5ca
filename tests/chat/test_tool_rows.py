"""Chats with tools, token for token as OpenAI's own Harmony library writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.chat.harmony_render import IGNORED, labels_of
from ftkit.chat.messages import EFFORTS, Conversation, Message, calls_of
from ftkit.chat.tool_namespace import tool_namespace

DATE = "2026-01-01"
TEXT = st.one_of(
    st.sampled_from(["日本語の文です。", "　全角　", "x\n\n", '{"a": 1}', "<|call|>", "<|constrain|>json", "🤖", "  "]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
NAME = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,12}", fullmatch=True)
WORDS = st.text("aあ '\"\n/", max_size=8)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.builds(
    lambda digits, exponent: float(f"{digits}e{exponent}"), st.integers(-999, 999), st.integers(-12, 18)
)
"""openai-harmony reads floats of 16 digits with a small error, and larger integers as floats."""
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)


def optional(**keys) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=keys)


def schemas(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    objects = st.builds(
        lambda known, properties, needed: (
            known | {"type": "object", "properties": properties, "required": list(properties)[:needed]}
        ),
        optional(description=WORDS, title=WORDS, nullable=st.booleans()),
        st.dictionaries(WORDS, inner, max_size=3),
        st.integers(0, 3),
    )
    arrays = st.builds(lambda known, items: known | {"type": "array", "items": items}, optional(default=VALUES), inner)
    several = st.builds(
        lambda known, variants: known | {"oneOf": variants},
        optional(description=st.sampled_from(["a", "b"]), default=VALUES, enum=st.just(["a"])),
        st.lists(inner | optional(description=st.sampled_from(["a", "b"]), default=VALUES), max_size=3),
    )
    return objects | arrays | several


LEAF = optional(
    type=st.sampled_from(
        ["string", "integer", "number", "boolean", "null", "date", ["string", "null"], ["integer"], []]
    ),
    description=WORDS,
    title=WORDS,
    default=VALUES,
    enum=st.lists(WORDS | st.integers(), max_size=3),
    nullable=st.booleans(),
    examples=st.lists(VALUES, max_size=2),
    anyOf=st.just([{"type": "string"}, {"type": "null"}]),
)
SCHEMA = st.recursive(LEAF, schemas, max_leaves=6)
PARAMETERS = st.none() | st.builds(
    lambda properties, needed: {"type": "object", "properties": properties, "required": list(properties)[:needed]},
    st.dictionaries(NAME, SCHEMA, max_size=3),
    st.integers(0, 3),
)
TOOL = st.fixed_dictionaries({"name": NAME, "description": WORDS, "parameters": PARAMETERS})
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def conversations(draw) -> Conversation:
    """Of one to three questions, with up to two calls before each answer; the last answer may be a call."""
    tools = draw(st.lists(TOOL, min_size=1, max_size=3, unique_by=lambda tool: tool["name"]))
    messages: list[Message] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    turns = draw(st.integers(1, 3))
    for turn in range(turns):
        messages.append({"role": "user", "content": draw(TEXT)})
        calls = draw(st.integers(0, 2))
        for _ in range(calls):
            name = draw(st.sampled_from(tools))["name"]
            arguments = json.dumps(draw(st.dictionaries(WORDS, VALUES, max_size=2)), ensure_ascii=draw(st.booleans()))
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            said = {"role": "assistant", "content": draw(TEXT | st.just("")), "tool_calls": [call]}
            messages.append(said | ({"thinking": draw(TEXT)} if draw(st.booleans()) else {}))
            messages.append({"role": "tool", "name": name, "content": draw(TEXT | st.just(""))})
        if turn == turns - 1 and calls and draw(st.booleans()):
            messages.pop()
        else:
            answer = {"role": "assistant", "content": draw(TEXT)}
            messages.append(answer | ({"thinking": draw(TEXT)} if draw(st.booleans()) else {}))
    return Conversation(1, messages, draw(st.sampled_from(EFFORTS)), {}, tools)


def by_openai(library, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each turn, rendered by OpenAI's library."""
    import openai_harmony as oh
    from openai_harmony import ReasoningEffort, RenderConversationConfig, ToolDescription

    effort = ReasoningEffort(conversation.reasoning_effort.capitalize())
    system = oh.SystemContent.new().with_conversation_start_date(DATE).with_reasoning_effort(effort)
    developer = oh.DeveloperContent.new().with_function_tools(
        [ToolDescription.new(t["name"], t["description"], parameters=t["parameters"]) for t in conversation.tools]
    )
    messages = list(conversation.messages)
    if messages[0]["role"] == "system":
        developer = developer.with_instructions(messages.pop(0)["content"])
    said = [
        oh.Message.from_role_and_content(oh.Role.SYSTEM, system),
        oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer),
    ]
    config = RenderConversationConfig(auto_drop_analysis=False)
    rows = []
    for message in messages:
        if message["role"] == "user":
            said.append(oh.Message.from_role_and_content(oh.Role.USER, message["content"]))
            continue
        if message["role"] == "tool":
            author = oh.Author.new(oh.Role.TOOL, f"functions.{message['name']}")
            result = oh.Message.from_author_and_content(author, message["content"])
            said.append(result.with_channel("commentary").with_recipient("assistant"))
            continue
        turn = spoken(message)
        whole = library.render_conversation_for_training(oh.Conversation.from_messages(said + turn), config=config)
        prompt = library.render_conversation_for_completion(
            oh.Conversation.from_messages(said), oh.Role.ASSISTANT, config=config
        )
        assert whole[: len(prompt)] == prompt
        rows.append((whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
        said += turn
        if not calls_of(message):
            said = [old for old in said if old.channel != "analysis"]
    return rows


def spoken(message: Message) -> list:
    """One turn as messages of OpenAI's library."""
    import openai_harmony as oh

    texts = [("analysis", message["thinking"])] if "thinking" in message else []
    if not (calls := calls_of(message)):
        texts.append(("final", message["content"]))
    elif message["content"]:
        texts.append(("commentary", message["content"]))
    turn = [oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel) for channel, text in texts]
    for call in calls:
        function = call["function"]
        written = oh.Message.from_role_and_content(oh.Role.ASSISTANT, function["arguments"])
        written = written.with_channel("commentary").with_recipient(f"functions.{function['name']}")
        turn.append(written.with_content_type("<|constrain|>json"))
    return turn


@settings(QUICK, max_examples=300)
@given(conversations())
def test_ids_and_labels_of_tool_chats_are_those_of_openai_harmony(real_harmony, openai_harmony, conversation) -> None:
    """A row for each call and each answer; the loss lies on these, not on results."""
    rows = real_harmony.token_rows([conversation])
    labels = labels_of(rows.input_ids, rows.starts, rows.prompt_length)
    ours = [
        (rows.input_ids[a:b].tolist(), labels[a:b].tolist())
        for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)
    ]
    assert ours == by_openai(openai_harmony, conversation)


@settings(QUICK, max_examples=300)
@given(
    st.lists(st.fixed_dictionaries({"name": NAME, "description": TEXT, "parameters": SCHEMA}), min_size=1, max_size=2)
)
def test_definitions_of_any_schema_are_written_as_openai_harmony_writes_them(openai_harmony, tools) -> None:
    import openai_harmony as oh

    described = [oh.ToolDescription.new(t["name"], t["description"], parameters=t["parameters"]) for t in tools]
    content = oh.DeveloperContent.new().with_function_tools(described)
    message = oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)
    theirs = openai_harmony.decode(openai_harmony.render(message))
    assert f"<|start|>developer<|message|>{tool_namespace(tools)}<|end|>" == theirs


CALL: Message = {
    "role": "assistant",
    "thinking": "天気を調べる。",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "大阪"}'}}],
}
WEATHER = {
    "name": "get_weather",
    "description": "天気",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CHAT: list[Message] = [
    {"role": "user", "content": "大阪の天気は？"},
    CALL,
    {"role": "tool", "name": "get_weather", "content": "晴れ"},
    {"role": "assistant", "thinking": "晴れ。", "content": "晴れです。"},
]


def test_a_call_its_result_and_the_answer_as_text(tiny_harmony, tiny) -> None:
    call, answer = tiny_harmony.token_rows([Conversation(1, CHAT, "low", {}, [WEATHER])]).rows()
    opening = tiny.decode(answer).split("<|start|>user")[0]
    assert opening.endswith(
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// 天気\ntype get_weather = (_: {\ncity: string,\n}) => any;\n\n} // namespace functions<|end|>"
    )
    asked = f"{opening}<|start|>user<|message|>大阪の天気は？<|end|>"
    called = (
        "<|start|>assistant<|channel|>analysis<|message|>天気を調べる。<|end|><|start|>assistant"
        ' to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "大阪"}<|call|>'
    )
    told = "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>晴れ<|end|>"
    final = (
        "<|start|>assistant<|channel|>analysis<|message|>晴れ。<|end|>"
        "<|start|>assistant<|channel|>final<|message|>晴れです。<|return|>"
    )
    assert tiny.decode(call) == asked + called
    assert tiny.decode(answer) == asked + called + told + final


def test_after_the_answer_the_thinking_of_its_calls_is_gone_from_the_prompt(tiny_harmony, tiny) -> None:
    chat = [*CHAT, {"role": "user", "content": "京都は？"}, {"role": "assistant", "content": "雨です。"}]
    *_, last = tiny_harmony.token_rows([Conversation(1, chat, "low", {}, [WEATHER])]).rows()
    assert "analysis<|message|>" not in tiny.decode(last) and '{"city": "大阪"}<|call|>' in tiny.decode(last)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_prompt_is_what_the_rows_have_before_the_loss(tiny_harmony, stage: int) -> None:
    chat = [*CHAT, {"role": "user", "content": "京都は？"}, CALL]
    rows = tiny_harmony.token_rows([Conversation(1, chat, "high", {}, [WEATHER])])
    heard = [i for i, message in enumerate(chat) if message["role"] == "assistant"][stage - 1]
    ids = list(rows.rows())[stage - 1][: rows.prompt_length[stage - 1]].tolist()
    assert tiny_harmony.prompt(Conversation(1, chat[:heard], "high", {}, [WEATHER])) == ids


def test_a_turn_kept_out_of_the_loss_is_context_for_the_next(tiny_harmony) -> None:
    chat = [message | ({"train": False} if message is CALL else {}) for message in CHAT]
    rows = tiny_harmony.token_rows([Conversation(1, chat, "low", {}, [WEATHER])])
    both = tiny_harmony.token_rows([Conversation(1, CHAT, "low", {}, [WEATHER])])
    assert len(rows) == 1 and rows.input_ids.tolist() == list(both.rows())[1].tolist()
