"""The split is stable, blind to width and white space, and keeps what is alike on one side."""

from __future__ import annotations

import hashlib
import unicodedata
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ftkit.data.splits import keys, sides

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TALE = "むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。おじいさんは山へ芝刈りに行きました。"


def split(questions: list[str], heldout: float = 0.3, likeness: float = 0.8):
    half = len(questions) // 2
    parts = [keys(some, near_duplicates=likeness < 1) for some in (questions[:half], questions[half:])]
    return sides(parts, heldout=heldout, likeness=likeness)


def alone(question: str, heldout: float) -> bool:
    """Where a question goes by itself: by the SHA-256 of its normal form, as README says."""
    normal = " ".join(unicodedata.normalize("NFKC", question).split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big") / 2**64 < heldout


@given(st.lists(TEXT, min_size=1, unique=True))
def test_each_question_goes_by_its_own_hash_when_only_equal_ones_are_joined(questions: list[str]) -> None:
    found = split(questions, likeness=1.0)
    assert found.heldout.tolist() == [alone(question, 0.3) for question in questions]


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
    assert keys([], near_duplicates=True).signatures.shape == (0, 64)


def test_signatures_tell_how_alike_two_texts_are() -> None:
    texts = [TALE * 3, TALE * 3 + "終わり", "全く違う文章です。" * 12]
    signatures = keys(texts, near_duplicates=True).signatures
    like = [np.mean(a == b) for a, b in pairwise(signatures)]
    assert like[0] > 0.9 and like[1] < 0.1
