"""tiktoken stands in for the model's tokenizer only where the ids must be the same."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.chat.tokenization import TIKTOKEN_TAKES, TextEncoder, tiktoken_encoding


@pytest.fixture(scope="module")
def encode(real) -> TextEncoder:
    return TextEncoder(real.backend_tokenizer)


@pytest.fixture(scope="module")
def content(real) -> dict:
    return json.loads(real.backend_tokenizer.to_str())


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.text(max_size=80), st.text("aあ 1\n-", max_size=200)), max_size=4))
def test_ids_are_the_tokenizer_s_own(real, encode, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert encode(texts) == list(real(texts, add_special_tokens=False)["input_ids"]) if texts else True


@pytest.mark.parametrize("unit", [" ", "a", "あ", "1", "\n ", "　"])
def test_a_megabyte_of_one_thing_is_encoded_too(real, encode, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert len(text) > TIKTOKEN_TAKES
    assert encode([text]) == [real(text, add_special_tokens=False)["input_ids"]]


def test_it_encodes_the_same_in_another_process(encode) -> None:
    there = pickle.loads(pickle.dumps(encode))
    texts = ["日本語", " " * (TIKTOKEN_TAKES + 1)]
    assert there(texts) == encode(texts)


def test_the_real_vocabulary_goes_by_tiktoken_and_the_tiny_one_by_its_own(content, tiny) -> None:
    assert tiktoken_encoding(content) is not None
    assert tiktoken_encoding(json.loads(tiny.backend_tokenizer.to_str())) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["model"].update(ignore_merges=False),
        lambda t: t["model"].update(dropout=0.1),
        lambda t: t["model"].update(merges=t["model"]["merges"][:-1]),
        lambda t: t["model"].update(merges=t["model"]["merges"][::-1]),
        lambda t: t["model"]["vocab"].update({"日": 199_997}),
        lambda t: t.update(normalizer={"type": "NFC"}),
        lambda t: t.update(pre_tokenizer=None),
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
    ],
    ids=[
        "merges_first",
        "dropout",
        "a_merge_missing",
        "other_order",
        "not_bytes",
        "normalizer",
        "no_words",
        "words_removed",
        "words_twice",
    ],
)
def test_a_tokenizer_that_works_otherwise_is_left_to_itself(content, change) -> None:
    other = content | {key: copy.copy(content[key]) for key in ("model", "pre_tokenizer")}
    other["model"]["vocab"] = dict(content["model"]["vocab"])
    other["pre_tokenizer"] = copy.deepcopy(content["pre_tokenizer"])
    change(other)
    assert tiktoken_encoding(other) is None


@pytest.mark.parametrize(("vocabulary", "special"), [("real", False), ("tiny", False), ("tiny", True)])
def test_tokens_that_a_user_added_stay_whole_as_they_are_served(request, vocabulary: str, special: bool) -> None:
    """tiktoken knows no added tokens, and would split them."""
    tokenizer = copy.deepcopy(request.getfixturevalue(vocabulary))
    tokenizer.add_tokens(["[顧客]", "<商品>"], special_tokens=special)
    text = "[顧客]は<商品>を買いましたか？<|end|>"
    ids = TextEncoder(tokenizer.backend_tokenizer)([text])[0]
    assert ids[0] == tokenizer.convert_tokens_to_ids("[顧客]") and tokenizer.convert_tokens_to_ids("<商品>") in ids
    served = tokenizer(text.removesuffix("<|end|>"), add_special_tokens=False)["input_ids"]
    assert ids[: len(served)] == served
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in ids and tokenizer.decode(ids) == text
