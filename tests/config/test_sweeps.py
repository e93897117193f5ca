"""Sweeps: what is typed is what is swept, Japanese as well, and no two runs share a folder."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.config.overrides import read
from ftkit.config.resolve import check_sweep
from ftkit.config.sweeps import LONGEST_NAME, UNSAFE, run_name
from ftkit.errors import ConfigError

TINY = ("experiment=tiny", "stage=plan")
LANGUAGE, PERSONA = "dataset.reasoning_language", "dataset.persona"


def swept(argument: str) -> list[str]:
    command_line = read([*TINY, argument], multirun=True)
    check_sweep(command_line)
    return [arguments[-1].partition("=")[2].strip("'\"") for arguments in command_line.combinations()]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        (f"{LANGUAGE}=日本語,英語", ["日本語", "英語"]),
        (f"{LANGUAGE}=日本語,English,フランス語", ["日本語", "English", "フランス語"]),
        (f"{LANGUAGE}=choice(日本語,英語)", ["日本語", "英語"]),
        (f'{PERSONA}="丁寧に、短く,答える。","乱暴に答える！"', ["丁寧に、短く,答える。", "乱暴に答える！"]),
        (f"{PERSONA}='丁寧に',乱暴に(笑,笑)", ["丁寧に", "乱暴に(笑,笑)"]),
        ("lora.r=4,8", ["4", "8"]),
    ],
)
def test_values_with_commas_are_a_sweep(argument: str, values: list[str]) -> None:
    assert swept(argument) == values


def test_without_m_a_japanese_text_keeps_its_commas() -> None:
    (override,) = read([f"{PERSONA}=明るく,元気に"], multirun=False).overrides
    assert override.value() == "明るく,元気に"


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        ([f"{PERSONA}=明るく，元気に"], "-m", "nothing is swept"),
        (["lora.r=4"], "-m", "nothing is swept"),
        (["lora.r=4,8,4"], "lora.r", "4 comes 2 times"),
        ([f"{LANGUAGE}=日本語,日本語"], LANGUAGE, "comes 2 times"),
    ],
)
def test_what_is_no_sweep_is_said_before_anything_starts(arguments: list[str], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_sweep(read([*TINY, *arguments], multirun=True))
    assert [problem.key for problem in error.value.problems] == [key] and said in error.value.problems[0].what


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ([], "tiny"),
        ([("lora.r", "4"), ("sft.learning_rate", "0.002")], "tiny-lora.r=4,sft.learning_rate=0.002"),
        ([("sft.learning_rate", "0.004321098765432109")], "tiny-sft.learning_rate=0.004321-"),
        ([("dataset.path", "'甲.jsonl'")], "tiny-dataset.path=_.jsonl-"),
        ([("dataset.persona", "x" * 300)], "tiny-dataset.persona=xxxx"),
    ],
)
def test_a_run_is_named_after_what_is_swept(swept: list[tuple[str, str]], name: str) -> None:
    found = run_name("tiny", swept)
    assert found.startswith(name) and (found == name or len(found) <= LONGEST_NAME)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.sampled_from("あ甲乙。！'\"ab_1.,=-"), max_size=300), min_size=2, max_size=2, unique=True
    )
)
def test_two_values_never_share_a_name(values: list[str]) -> None:
    one, other = (run_name("tiny", [("dataset.persona", value)]) for value in values)
    assert one != other and not UNSAFE.search(one) and len(one) <= LONGEST_NAME
