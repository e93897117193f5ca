"""Texts to token ids, many at a time: by tiktoken where it must give the same ids as the tokenizer, else by that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ftkit.chat.messages import SPECIAL_TOKEN

TIKTOKEN_TAKES = 50_000
"""Characters; tiktoken's search for words can overflow its stack on a longer run of white space."""


class TextEncoder:
    """Encodes plain text: what looks like a special token is read as the characters it is written with.

    Tokens that a user added in ordinary writing, ``[顧客]`` for instance, are words of the text and stay whole, as they
    are served. It can be sent to another process, where the tokenizer is rebuilt only if a text needs it.

    Args:
        tokenizer: of the ``tokenizers`` library; it stays as it was.
    """

    def __init__(self, tokenizer: Any):
        self._json: str = tokenizer.to_str()
        self._tokenizer: Any = None
        content = json.loads(self._json)
        if words := [token for token in added_words(content) if token["special"]]:
            for token in words:
                token["special"] = False
            self._json = json.dumps(content)
        self._tiktoken = tiktoken_encoding(content)
        self.within_characters = tokens_within_characters(content["model"]["vocab"])
        """Ids of the tokens that begin inside the bytes of a character."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        if self._tiktoken is None:
            return [encoding.ids for encoding in self._own().encode_batch_fast(texts, add_special_tokens=False)]
        fast = self._tiktoken.encode_ordinary
        return [
            fast(text) if len(text) <= TIKTOKEN_TAKES else self._own().encode(text, add_special_tokens=False).ids
            for text in texts
        ]

    def _own(self) -> Any:
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(self._json)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._tokenizer.encode_special_tokens = True
        return self._tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokenizer": None}


def tiktoken_encoding(tokenizer: Mapping[str, Any]) -> Any:
    """The same tokenizer for tiktoken, without special tokens; None if it works otherwise, or tiktoken is missing.

    tiktoken joins any two neighbours that make a token, the smallest id first. So does byte-level BPE if its list of
    merges holds every way to make each token, in the order of the ids, and words that are tokens are taken whole.

    Args:
        tokenizer: content of a tokenizer.json.
    """
    try:
        import tiktoken
    except ModuleNotFoundError:  # a job's image has what jobs need; without it encoding is slower, and the same
        return None
    model, pattern = tokenizer["model"], _word_pattern(tokenizer)
    if added_words(tokenizer):
        return None
    if pattern is None or model["type"] != "BPE" or not model.get("ignore_merges") or model.get("dropout"):
        return None
    byte_of = _bytes_by_character()
    try:
        ranks = {bytes(byte_of[c] for c in token): number for token, number in model["vocab"].items()}
        merges = _made(model["merges"], model["vocab"])
    except KeyError:
        return None
    ways = sum(token[:i] in ranks and token[i:] in ranks for token in ranks for i in range(1, len(token)))
    if ways != len(merges) or any(a > b for a, b in pairwise(merges)):
        return None
    return tiktoken.Encoding("ftkit", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def added_words(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The added tokens in ordinary writing, which tiktoken would split.

    Args:
        tokenizer: content of a tokenizer.json.
    """
    return [token for token in tokenizer["added_tokens"] if not SPECIAL_TOKEN.fullmatch(token["content"])]


def tokens_within_characters(vocab: Mapping[str, int]) -> list[int]:
    """Ids of the byte-level tokens that begin with a continuation byte of UTF-8, ascending."""
    byte_of = _bytes_by_character()
    return sorted(number for token, number in vocab.items() if 0x80 <= byte_of.get(token[:1], 0) < 0xC0)


def _made(merges: Sequence[Any], vocab: Mapping[str, int]) -> list[int]:
    """Ids of the tokens that the merges make, in their order."""
    return [vocab["".join(pair.split(" ") if isinstance(pair, str) else pair)] for pair in merges]


def _word_pattern(tokenizer: Mapping[str, Any]) -> str | None:
    """The regular expression that cuts text into words, if nothing else is done to the text."""
    steps = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers", [])
    if tokenizer["normalizer"] is not None or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, level = steps
    plain = split["behavior"] == "Isolated" and not split["invert"]
    if not plain or level["add_prefix_space"] or level["use_regex"]:
        return None
    return split["pattern"].get("Regex")


def _bytes_by_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable ones stand for themselves, U+0100 and following for the others, in order (as in GPT-2's code).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
