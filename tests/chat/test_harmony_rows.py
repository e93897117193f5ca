"""Tokens and loss, one by one, as the chat template and OpenAI's own Harmony library have them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.chat.harmony_render import IGNORED, PINNED_CLOCK, HarmonyRenderer, checked_harmony, labels_of
from ftkit.chat.messages import EFFORTS, Conversation
from ftkit.errors import StageError

DATE = "2026-01-01"
PIECES = (
    *(
        "日本語の文です。",
        "ｶﾀｶﾅﾃｽﾄ",
        "　全角　空白　",
        "🤖",
        "👨‍👩‍👧‍👦",
        "x\n\n",
        "  ",
        "\t",
        "１２３",
        "12345",
        "don't",
    ),
    *("<|start|>", "<|end|>", "<|return|>", "<|channel|>final<|message|>", "<|endoftext|>", "<think>", "한국어", "é"),
)
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.text("aｱ亜 \n", min_size=1, max_size=60),
)


@st.composite
def conversations(draw) -> Conversation:
    """With and without system message and thinking, of one to three turns, at any effort."""
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        answer = {"role": "assistant", "content": draw(TEXT)}
        thinking = {"thinking": draw(TEXT)} if draw(st.integers(0, 3)) else {}
        messages += [{"role": "user", "content": draw(TEXT)}, answer | thinking]
    return Conversation(1, messages, draw(st.sampled_from(EFFORTS)), {})


def rows_of(harmony: HarmonyRenderer, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each training row."""
    rows = harmony.token_rows([conversation])
    labels = labels_of(rows.input_ids, rows.starts, rows.prompt_length)
    return [(rows.input_ids[a:b].tolist(), labels[a:b].tolist()) for a, b in pairwise(rows.starts.tolist())]


def by_openai(library, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
    """The same by OpenAI's library: of each turn the conversation for training, and the prompt that comes before it."""
    import openai_harmony as oh
    from openai_harmony import ReasoningEffort, RenderConversationConfig

    effort = ReasoningEffort(conversation.reasoning_effort.capitalize())
    system = oh.SystemContent.new().with_conversation_start_date(DATE).with_reasoning_effort(effort)
    messages = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    rows = []
    for message in conversation.messages:
        if message["role"] == "system":
            content = oh.DeveloperContent.new().with_instructions(message["content"] + "\n\n")
            messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, content))
            continue
        if message["role"] == "user":
            messages.append(oh.Message.from_role_and_content(oh.Role.USER, message["content"]))
            continue
        parts = [("analysis", message["thinking"])] if "thinking" in message else []
        answer = [
            oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)
            for channel, text in (*parts, ("final", message["content"]))
        ]
        config = RenderConversationConfig(auto_drop_analysis=False)
        whole = library.render_conversation_for_training(
            oh.Conversation.from_messages(messages + answer), config=config
        )
        prompt = library.render_conversation_for_completion(
            oh.Conversation.from_messages(messages), oh.Role.ASSISTANT, config=config
        )
        assert whole[: len(prompt)] == prompt
        rows.append((whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
        messages.append(answer[-1])
    return rows


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations())
def test_ids_and_labels_are_those_of_openai_harmony(real_harmony, openai_harmony, conversation: Conversation) -> None:
    """One row an assistant turn, loss on that turn alone. Guards: the prompt's length in token_rows, and labels_of."""
    assert rows_of(real_harmony, conversation) == by_openai(openai_harmony, conversation)


@settings(max_examples=200, deadline=None)
@given(conversations())
def test_text_of_special_tokens_stays_text(tiny_harmony, tiny, conversation: Conversation) -> None:
    marks = tiny.convert_tokens_to_ids(["<|start|>", "<|end|>", "<|return|>"])
    for ids, _ in rows_of(tiny_harmony, conversation):
        start, end, done = (ids.count(mark) for mark in marks)
        assert done == 1 and ids[-1] == marks[2] and start == end + done


@pytest.mark.parametrize("vocabulary", ["real", "tiny"])
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=conversations())
def test_ids_are_those_of_the_chat_template(request, vocabulary: str, conversation: Conversation) -> None:
    """Of conversations without text of special tokens, which the template would let through."""
    plain = {"<|": "<", "|>": ">"}
    messages = [
        {key: value.replace("<|", plain["<|"]).replace("|>", plain["|>"]) for key, value in message.items()}
        for message in conversation.messages
    ]
    tokenizer = request.getfixturevalue(vocabulary)
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        chat_template=PINNED_CLOCK + tokenizer.chat_template,
        current_date=DATE,
        reasoning_effort=conversation.reasoning_effort,
    )
    harmony = request.getfixturevalue(f"{vocabulary}_harmony")
    ids, _ = rows_of(harmony, Conversation(1, messages, conversation.reasoning_effort, {}))[-1]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(conversations(), max_size=5))
def test_conversations_together_give_the_rows_of_each_alone(tiny_harmony, several: list[Conversation]) -> None:
    rows = tiny_harmony.token_rows(several)
    alone = [(i, ids) for i, c in enumerate(several) for ids, _ in rows_of(tiny_harmony, c)]
    assert [(int(i), row.tolist()) for i, row in zip(rows.conversations, rows.rows(), strict=True)] == alone


def test_the_thinking_s_place_is_known(tiny_harmony, tiny) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "thinking": "三つの数を足す。", "content": "a"}]
    rows = tiny_harmony.token_rows([Conversation(1, chat, "low", {})])
    start, end = rows.thinking[0]
    assert tiny.decode(rows.input_ids[start:end]) == "三つの数を足す。"


def test_a_chat_template_that_is_not_harmony_is_refused(tiny) -> None:
    import copy

    other = copy.deepcopy(tiny)
    other.chat_template = tiny.chat_template.replace("# Instructions", "# Rules")
    with pytest.raises(StageError, match="does not write the Harmony format"):
        checked_harmony(other, current_date=DATE)
    other.chat_template = None
    with pytest.raises(StageError, match="no chat template"):
        checked_harmony(other, current_date=DATE)


def test_a_tokenizer_without_harmony_s_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(StageError, match=r"no <\|start\|>: this is not a gpt-oss"):
        checked_harmony(other, current_date=DATE)
