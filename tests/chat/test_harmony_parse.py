"""Generated token ids to thinking and answer."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.chat.harmony_parse import Call, Completion, HarmonyParser, Reader
from ftkit.serving.endpoint.answers import describe
from ftkit.serving.endpoint.requests import Request

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="session")
def harmony(tokenizer) -> HarmonyParser:
    return HarmonyParser(tokenizer)


@pytest.fixture(scope="session")
def parsed(tokenizer, harmony: HarmonyParser):
    """Parses what a model would have generated, given as text."""
    return lambda text: harmony.parse(tokenizer(text, add_special_tokens=False)["input_ids"])


ANALYSIS = "<|channel|>analysis<|message|>考える<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>2です<|return|>"
WHOLE = Completion("考える", "2です", ended=True, well_formed=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ANALYSIS + FINAL, WHOLE),
        (ANALYSIS + FINAL + "<|endoftext|><|endoftext|>", WHOLE),
        (FINAL, WHOLE._replace(thinking="")),
        (
            ANALYSIS + "<|channel|>commentary<|message|>少し待って<|end|><|start|>assistant" + FINAL,
            WHOLE._replace(rest=(("in the channel commentary", "少し待って"),)),
        ),
        (ANALYSIS + FINAL.replace("<|return|>", ""), WHOLE._replace(ended=False, well_formed=False)),
        (ANALYSIS, Completion("考える", "", False, False)),
        ("<|channel|>analysis<|message|>考え", Completion("考え", "", False, False)),
        ("<|channel|>ana", Completion("", "", False, False)),
        ("", Completion("", "", False, False)),
        ("2です<|return|>", Completion("", "", True, False, rest=(("outside the channels", "2です"),))),
        (
            "<|channel|>notes<|message|>覚え書き<|return|>",
            Completion("", "", True, False, rest=(("in the channel notes", "覚え書き"),)),
        ),
        (ANALYSIS + FINAL.replace("<|return|>", "<|endoftext|>"), WHOLE._replace(well_formed=False)),
        (ANALYSIS.replace("<|start|>assistant", "") + FINAL, WHOLE._replace(well_formed=False)),
        (
            ANALYSIS + FINAL.replace("<|return|>", "<|end|>") + "<|start|>assistant" + FINAL,
            Completion("考える", "2です\n\n2です", True, False),
        ),
        (
            "<|channel|>commentary to=functions.add<|constrain|>json<|message|>{}<|call|>",
            Completion("", "", ended=True, well_formed=False, calls=(Call("add", "{}"),)),
        ),
        (
            ANALYSIS + ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            Completion("考える", "", True, False, calls=(Call("add", '{"a": 1}'),)),
        ),
        (
            "<|channel|>analysis to=functions.add<|message|>{}<|call|>",
            Completion("", "", True, False, calls=(Call("add", "{}"),)),
        ),
        (
            '<|channel|>commentary to=functions.add<|message|>{"a',
            Completion("", "", False, False, rest=(("the call of add that had begun", '{"a'),)),
        ),
    ],
)
def test_channels_are_told_apart(parsed, text: str, expected: Completion):
    assert parsed(text) == expected


@settings(deadline=None)
@given(thinking=TEXT, answer=TEXT)
def test_what_the_chat_template_writes_is_read_back(tokenizer, parsed, thinking: str, answer: str):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "thinking": thinking, "content": answer}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert parsed(whole.removeprefix(prompt)) == Completion(thinking, answer, ended=True, well_formed=True)


@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_at_all_are_taken(tokenizer, harmony: HarmonyParser, data: st.DataObject):
    special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    token = st.sampled_from(special) | st.integers(0, len(tokenizer) + 64)  # a model's vocabulary is padded
    ids = data.draw(st.lists(token, max_size=60))
    completion, reader = harmony.parse(ids), Reader(harmony)
    pieces = [piece for token in ids for piece in reader.feed(token)] + reader.close()
    for kind in ("thinking", "output"):
        assert "".join(text for of, text in pieces if of == kind) == getattr(completion, kind)
    assert completion.ended == bool(set(ids) & set(harmony.stop_ids))
    assert completion.ended or not completion.well_formed


def test_no_text_is_lost_wherever_a_model_puts_it(parsed):
    text = (
        "一<|channel|>x to=functions.f<|message|>二<|end|>三<|start|>assistant<|channel|>final<|message|>四<|return|>"
    )
    completion = parsed(text)
    kept = [completion.output, *(call.arguments for call in completion.calls), *(said for _, said in completion.rest)]
    assert sorted(kept) == sorted("一二三四")


def test_many_headers_that_do_not_fit_take_no_time(parsed):
    assert parsed("<|channel|>analysis x<|message|><|end|><|start|>assistant" * 200).well_formed is False


def test_the_end_of_the_analysis_is_no_stop(tokenizer, harmony: HarmonyParser):
    """Guard: HarmonyParser.STOPS; with <|end|> in it, answers end after their thinking."""
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in harmony.stop_ids
    assert set(tokenizer.convert_ids_to_tokens(harmony.stop_ids)) == {"<|return|>", "<|call|>", "<|endoftext|>"}


@pytest.mark.parametrize(
    ("completion", "stop", "expected"),
    [
        (WHOLE, (), {"output": "2です", "finish_reason": "stop"}),
        (WHOLE._replace(ended=False), ("で",), {"output": "2", "finish_reason": "stop"}),
        (WHOLE._replace(ended=False), (), {"finish_reason": "length", "note": "cut off by max_new_tokens=9"}),
        (
            Completion("考", "", False, False),
            (),
            {"output": "", "note": "cut off by max_new_tokens=9; the final answer had not begun"},
        ),
        (Completion("考", "", True, False), (), {"output": "", "note": "the model ended without a final answer"}),
    ],
)
def test_the_answer_says_what_is_missing(completion: Completion, stop: tuple[str, ...], expected: dict[str, str]):
    answer = describe(completion, Request([], max_new_tokens=9, stop=stop), 3, 9, 9)
    assert answer | expected == answer
    assert ("note" in answer) == ("note" in expected)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 9}


PIECES = ["<|channel|>", "analysis", "final", "commentary", "<|message|>", "<|end|>", "<|start|>", "assistant", "user",
          "<|return|>", "<|constrain|>", "json", " to=functions.f", " ", "\n", "考える", "2です", "<|call|>",
          "\u3000"]  # fmt: skip
WHOLE_ANSWERS = [FINAL, ANALYSIS + FINAL, ANALYSIS.replace("analysis", "commentary") + ANALYSIS + FINAL]


def test_an_answer_is_well_formed_where_openai_harmony_reads_it_to_a_final_message(real, openai_harmony) -> None:
    """4,000 answers, most with a few pieces put in, left out or replaced."""
    from openai_harmony import HarmonyError, Role

    parse, random = HarmonyParser(real).parse, Random(0)
    encode = cache(lambda text: openai_harmony.encode(text, allowed_special="all"))
    verdicts = Counter()
    for _ in range(4000):
        ids = list(encode(random.choice(WHOLE_ANSWERS)))
        for _ in range(random.randrange(4)):
            place, gone = random.randrange(len(ids) + 1), random.randrange(2)
            ids[place : place + gone] = encode(random.choice(PIECES)) if random.random() < 0.8 else []
        ids = ids[: next((i for i, token in enumerate(ids) if token in parse.__self__.stop_ids), len(ids)) + 1]
        try:
            messages = openai_harmony.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
        except HarmonyError:
            messages = []
        channels = [message.channel for message in messages if message.author.role == Role.ASSISTANT]
        read = len(channels) == len(messages) > 0 and channels[-1] == "final" and channels.count("final") == 1
        types = [(m.content_type or "").removeprefix("<|constrain|>") for m in messages]
        if any("<|" in text for m in messages for text in (m.recipient or "", m.content[0].text)) or "<|" in str(types):
            continue  # special tokens stand for text: it reads on, and what it reads is no answer
        expected = read and ids[-1:] == encode("<|return|>")
        assert parse(ids).well_formed is expected, openai_harmony.decode(ids)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 500
