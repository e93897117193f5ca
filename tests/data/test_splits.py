"""The split is stable, blind to width and white space, and keeps what is alike on one side."""

from __future__ import annotations

import hashlib
import unicodedata
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.splits import keys, normal, sides

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TALE = "むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。おじいさんは山へ芝刈りに行きました。"


def split(questions: list[str], heldout: float = 0.3, likeness: float = 0.8, openings: list[str] | None = None):
    half = len(questions) // 2
    openings = openings or questions
    parts = [keys(questions[i:j], openings[i:j], near_duplicates=likeness < 1) for i, j in ((0, half), (half, None))]
    return sides(parts, heldout=heldout, likeness=likeness)


def alone(question: str, heldout: float) -> bool:
    """Where a question goes by itself: by the SHA-256 of its normal form, as README says."""
    normal = " ".join(unicodedata.normalize("NFKC", question).split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big") / 2**64 < heldout


def split_groups(questions: list[str]) -> set[str]:
    return {" ".join(unicodedata.normalize("NFKC", question).split()) for question in questions}


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(TEXT, min_size=1, unique=True))
def test_each_question_goes_by_its_own_hash_when_only_equal_ones_are_joined(questions: list[str]) -> None:
    found, by_hash = split(questions, likeness=1.0), [alone(question, 0.3) for question in questions]
    if found.moved:
        assert len(set(by_hash)) == 1, "one side would have been empty"
    else:
        assert found.heldout.tolist() == (by_hash if len(split_groups(questions)) > 1 else [False] * len(questions))


@given(st.text(st.sampled_from("か\u3099ｶﾞ\uff9e？＾～｀ａ̀Åé\u3000　 ①㍻ﷺＡÀ\u0323\u0301\uffe3")) | TEXT)
def test_a_normal_form_is_that_of_nfkc(text: str) -> None:
    assert normal(text) == " ".join(unicodedata.normalize("NFKC", text).split())


def test_width_space_and_order_make_no_difference() -> None:
    questions = [f"質問 {i} ABC" for i in range(200)]
    wide = [f"　質問　　{i}  ＡＢＣ\n" for i in range(200)]
    both = split(questions + wide, likeness=1.0)
    assert both.heldout[:200].tolist() == both.heldout[200:].tolist() and both.repeated == 200
    backwards = split(questions[::-1])
    assert backwards.heldout[::-1].tolist() == split(questions).heldout.tolist()


def test_near_duplicates_share_a_side_and_others_do_not() -> None:
    families = [
        [f"{i}番目の話です。{TALE[i:]}{TALE[:i]}{end}" for end in ("", "。", "終わり")] for i in range(0, 48, 3)
    ]
    questions = [question for family in families for question in family]
    held = [split(questions, heldout=0.5).heldout[i : i + 3].tolist() for i in range(0, len(questions), 3)]
    assert all(len(set(sides)) == 1 for sides in held)
    apart = split(questions, heldout=0.5, likeness=1.0).heldout.reshape(-1, 3)
    assert any(len(set(sides.tolist())) > 1 for sides in apart), "without the search they do not all stay together"


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    words = [f"単語{i}番" for i in range(100)]
    chain = ["".join(words[i : i + 80]) for i in range(10)]
    held = split(chain, heldout=0.5).heldout
    assert len(set(held.tolist())) == 1
    assert split(chain).near == 9


def test_different_short_questions_are_not_near_duplicates() -> None:
    found = split([f"{a}+{b}を計算してください。" for a in range(2, 10) for b in range(2, 10)])
    assert (found.repeated, found.near) == (0, 0)


def test_the_held_out_share_is_about_what_was_asked_for_also_of_groups() -> None:
    assert 0.18 < split([f"質問{i}" for i in range(5000)], heldout=0.2, likeness=1.0).heldout.mean() < 0.22
    groups = [f"{hashlib.sha512(str(i).encode()).hexdigest()}{end}" for i in range(1500) for end in ("", "x", "y")]
    found = split(groups, heldout=0.2)
    assert found.near == 3000 and 0.17 < found.heldout.mean() < 0.23


def test_a_row_added_later_leaves_the_others_where_they_were() -> None:
    questions = [
        f"質問その{i}について教えてください。{hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(300)
    ]
    before, after = split(questions).heldout, split([*questions, "新しい質問"]).heldout
    assert before.tolist() == after[:300].tolist()


def test_one_question_and_a_very_long_one_can_be_split() -> None:
    assert len(split(["あ"]).heldout) == 1
    assert len(split(["あ" * 3_000_000, ""]).heldout) == 2
    assert len(split(["あ", "い"]).heldout) == 2
    assert keys([], [], near_duplicates=True).signatures.shape == (0, 64)


def test_signatures_tell_how_alike_two_texts_are() -> None:
    random = Random(0)
    texts = ["".join(random.choices("いろはにほへとちりぬるを", k=random.randint(1, 120))) for _ in range(300)]
    others = [text[: len(text) * (i % 100) // 100] + text[::-1][: 100 - i % 100] for i, text in enumerate(texts)]
    mine, theirs = (keys(some, some, near_duplicates=True).signatures for some in (texts, others))
    errors = [np.mean(a == b) - likeness(*pair) for a, b, *pair in zip(mine, theirs, texts, others, strict=True)]
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06 and np.max(np.abs(errors)) < 0.25


def likeness(one: str, other: str) -> float:
    """The Jaccard index itself of the pieces of two texts."""
    first, second = ({f"****{text}****"[i : i + 5] for i in range(len(text) + 4)} for text in (one, other))
    return len(first & second) / len(first | second)


def test_the_stages_of_a_chat_that_grows_share_a_side() -> None:
    chats = [
        [f"質問{i}番 {hashlib.sha256(f'{i} {turn}'.encode()).hexdigest()}" for turn in range(3)] for i in range(40)
    ]
    stages = [("\n".join(chat[: end + 1]), chat[0]) for chat in chats for end in range(3)]
    questions, openings = map(list, zip(*stages, strict=True))
    held = split(questions, heldout=0.4, openings=openings).heldout.reshape(-1, 3)
    assert (held.all(axis=1) | ~held.any(axis=1)).all() and 4 < held.all(axis=1).sum() < 28
    apart = split(questions, heldout=0.4, likeness=1.0).heldout.reshape(-1, 3)
    assert not (apart.all(axis=1) | ~apart.any(axis=1)).all(), "by their questions alone they would be torn apart"


def test_a_share_too_small_for_the_rows_holds_one_group_out_and_one_too_large_leaves_one() -> None:
    questions = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20)]
    few, many = split(questions, heldout=1e-9), split(questions, heldout=1 - 1e-9)
    assert few.heldout.sum() == 1 and few.moved and (~many.heldout).sum() == 1 and many.moved
    assert not split(questions, heldout=0.0).heldout.any()


def test_one_group_of_all_rows_is_trained_and_told() -> None:
    alike = [f"次の文が肯定か否定かを一語で答えてください。理由は要りません。{TALE}: {end}" for end in "良悪普好嫌"]
    found = split(alike, heldout=0.9)
    assert not found.heldout.any() and (found.largest, found.joins) == (5, "near")
    assert split(["同じ質問"] * 4, heldout=0.9).joins == "equal"
