"""A request's bytes to the JSON object in them."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from ftkit.serving.endpoint.refusals import Refused, shown

EXAMPLE = '{"messages": [{"role": "user", "content": "…"}]}'
DEPTH = 64
"""Levels of lists and objects; a tool's JSON schema needs some."""
OTHER_ENCODINGS = {"cp932": "CP932 (Shift_JIS)", "euc_jp": "EUC-JP"}
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x78\x9c": "deflate", b"PK\x03\x04": "zip"}
_MAY_HOLD_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(raw: bytes | str, content_encoding: str = "") -> dict[str, Any]:
    """The body as a JSON object.

    Args:
        raw: as it came; a byte order mark is left out.
        content_encoding: the header of that name.

    Raises:
        Refused: it is empty, compressed, in another encoding, no JSON object, nested too deeply, has a key twice or
            holds half a surrogate pair.
    """
    if content_encoding.strip().lower() not in ("", "identity"):
        said = f"the body is compressed (Content-Encoding: {content_encoding[:32]}); send it uncompressed"
        raise Refused(said, status=415)
    text = raw if isinstance(raw, str) else _decoded(raw)
    if not text.strip():
        raise Refused(f"the body is empty, not JSON; send {EXAMPLE}")
    try:
        body = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise Refused(f"the body is not JSON that can be read: nested deeper than {DEPTH} levels") from error
    except ValueError as error:
        form = re.match(r"\s*[\w.%-]{1,64}=", text)
        said = "a form" if form else f"not JSON ({error})"
        raise Refused(f"the body is {said}; send {EXAMPLE}") from error
    if not isinstance(body, dict):
        raise Refused(f"the body is {shown(body)}, not an object; send {EXAMPLE}")
    _check_values(body, surrogates=_MAY_HOLD_SURROGATE.search(text) is not None or isinstance(raw, str))
    return body


def _decoded(raw: bytes) -> str:
    for magic, name in COMPRESSED.items():
        if raw.startswith(magic):
            raise Refused(f"the body is compressed ({name}), not JSON; send it uncompressed", status=415)
    try:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        read_as = next((name for codec, name in OTHER_ENCODINGS.items() if _decodes(raw, codec)), "")
        looks = f", it looks like {read_as}" if read_as else ""
        said = f"the body is not UTF-8{looks} (byte 0x{raw[error.start]:02x} at {error.start}), so it is not JSON"
        raise Refused(f"{said}; send UTF-8") from error


def _decodes(raw: bytes, codec: str) -> bool:
    try:
        json.loads(raw.decode(codec))
    except (ValueError, RecursionError):
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"{shown(twice)} is given twice", twice[:64])
    return built


def _check_values(body: dict[str, Any], *, surrogates: bool) -> None:
    """See that nothing is nested too deeply, and that every text is one."""
    level: list[tuple[str, Any]] = list(body.items())
    if surrogates:
        for name in body:
            _check_text(name, "")
    for _ in range(DEPTH):
        below: list[tuple[str, Any]] = []
        for field, value in level:
            if isinstance(value, dict):
                if surrogates:
                    for name in value:
                        _check_text(name, field)
                below.extend((field, inner) for inner in value.values())
            elif isinstance(value, list):
                below.extend((field, inner) for inner in value)
            elif surrogates and isinstance(value, str):
                _check_text(value, field)
        if not below:
            return
        level = below
    raise Refused(f"{level[0][0][:64]} is nested deeper than {DEPTH} levels", level[0][0][:64])


def _check_text(text: str, field: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        where = field[:64] or "a field's name"
        raise Refused(f"{where} holds half a surrogate pair, which is no text", field[:64])
