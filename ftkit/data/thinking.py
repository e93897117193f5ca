"""Thinking and answer in one text, parted by tags."""

from __future__ import annotations

import re
from functools import lru_cache

from ftkit.data.refused import Refused

OTHER_TAGS = re.compile(
    r"\s*<(think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis|seed:think)>", re.IGNORECASE
)
"""Tags that other models think in."""
_LIKE_TAGS = re.compile(
    r"(?:[<＜\[◁]|&lt;)\s*/?\s*(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratch_?pad|analysis|answer)"
    r"\s*(?:[>＞\]▷]|&gt;)",
    re.IGNORECASE,
)
"""What tags around a thinking or an answer are written like."""


def split_thinking(answer: str, tag: str = "think") -> tuple[str | None, str]:
    """Part ``<think>…</think>`` and the final answer; line breaks around either are layout, indentation is not.

    Returns:
        The thinking, empty where the tags hold nothing, None without tags; and the answer. A text with the closing tag
        alone thinks from its beginning, as R1's answers do.

    Raises:
        Refused: an unclosed tag, more than one pair, text before it, or nothing after it.
    """
    pattern = _tags(tag)
    found = list(pattern.finditer(answer))
    tags = [match.group().lower() for match in found]
    if not tags:
        return None, answer
    opening, closing = f"<{tag}>".lower(), f"</{tag}>".lower()
    if tags == [opening]:
        raise Refused(f"the answer's {opening} is never closed")
    if tags not in ([opening, closing], [closing]):
        raise Refused(f"the answer's tags are not one {opening}…{closing}", " ".join(tags[:8]))
    begins = 0 if tags == [closing] else found[0].end()
    before = answer[: found[0].start()] if begins else ""
    thinking, content = answer[begins : found[-1].start()], answer[found[-1].end() :]
    if before.strip():
        raise Refused(f"text stands before {opening}", repr(before.strip()[:40]))
    if not content.strip():
        raise Refused(f"no final answer follows {closing}")
    return _beside_tag(thinking), _beside_tag(content)


def begins_with_other_tags(answer: str) -> str | None:
    """The tag that another model thinks in, where the answer begins with a pair of it."""
    found = OTHER_TAGS.match(answer)
    return found.group(1) if found and f"</{found.group(1)}>" in answer else None


def looks_like_tags(answer: str) -> str | None:
    """What reads like a tag of thinking, of another name or writing, or not at the answer's beginning."""
    found = _LIKE_TAGS.search(answer)
    return found.group() if found else None


def trimmed(text: str) -> str:
    """Without the blank lines before it and the white space after it; the first line's indentation stays."""
    text = text.rstrip()
    if not text[:1].isspace():
        return text
    before = len(text) - len(text.lstrip())
    return text[max(text.rfind("\n", 0, before), text.rfind("\r", 0, before)) + 1 :]


def _beside_tag(text: str) -> str:
    """One blank that parts a text from its tag is layout too."""
    one_blank = text[:1] == " " and text[1:2].strip() != ""
    return trimmed(text[1:] if one_blank else text)


@lru_cache
def _tags(tag: str) -> re.Pattern[str]:
    return re.compile(rf"</?{re.escape(tag)}>", re.IGNORECASE)
