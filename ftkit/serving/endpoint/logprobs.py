"""Log-probabilities of an answer's tokens, as OpenAI's chat completions have them."""

from __future__ import annotations

from typing import Any

from ftkit.serving.endpoint.sampling import Chosen


class TokenWords:
    """Writes tokens out.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        is_byte_level = type(getattr(tokenizer.backend_tokenizer, "decoder", None)).__name__ == "ByteLevel"
        self._bytes = {sign: byte for byte, sign in bytes_to_unicode().items()} if is_byte_level else {}

    def shown(self, chosen: Chosen) -> dict[str, Any]:
        """One entry of ``logprobs.content``."""
        likeliest = [self._entry(token, logprob) for token, logprob in chosen.likeliest]
        return self._entry(chosen.token, chosen.logprob) | {"top_logprobs": likeliest}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": self._bytes_of(token, text)}

    def _bytes_of(self, token: int, text: str) -> list[int] | None:
        """UTF-8 of the token, which may be a part of a character; None where the tokenizer does not tell that."""
        if "\ufffd" not in text:
            return list(text.encode())
        signs = self._tokenizer.convert_ids_to_tokens(token) or ""
        known = [self._bytes.get(sign) for sign in signs]
        return None if None in known else [byte for byte in known if byte is not None]
