"""What is printed, in the reader's language: every text is English until it is printed, and is turned there.

Records, files and errors so never depend on the language. The catalogue has the texts as they stand in the source, with
``{0}``, ``{1}`` … for what is filled in; a line is turned by the first that fits it, and so is what stands in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

LANGUAGES = ("en", "ja")
VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""Environment variables that name the language, as gettext asks for them: the first that is set counts."""
CATALOGUES = Path(__file__).parent / "locale"
ENTRY = re.compile(r'^msgid (?P<id>(?:"[^\n]*"\n)+)msgstr (?P<str>(?:"[^\n]*"(?:\n|$))+)', re.MULTILINE)
"""An entry of a catalogue in gettext's format; a text may go on in strings below."""
FILLED_IN = re.compile(r"\{(\d+)\}")
SHORT = 10
"""Letters below which a text is too common to have blanks in what is filled in, unless two blanks set it apart."""
LONGEST = 2000
"""Characters beyond which a text is somebody's data, which may have the signs of every pattern many times."""

_turned: list[tuple[re.Pattern[str], str]] = []
_between = {"; ": "; ", ", ": ", "}
"""Signs between parts of a line that are turned each for itself."""


def speak(language: str | None) -> None:
    """Print in a language from now on; null asks the environment. What is not known is English."""
    language = language or of_environment(os.environ)
    known = catalogue(language) if language != "en" else {}
    texts = sorted(known.keys() - _between.keys(), key=lambda text: (-_letters(text), text))
    _turned[:] = [(_pattern(text), known[text]) for text in texts]
    _between.update({sign: known.get(sign, sign) for sign in _between})


def of_environment(variables: Mapping[str, str]) -> str:
    """The language that environment variables name, or English."""
    named = next((value for name in VARIABLES if (value := variables.get(name))), "")
    return named[:2] if re.match("[a-z]{2}(_|$)", named) and named[:2] in LANGUAGES else "en"


def catalogue(language: str) -> dict[str, str]:
    """The translations into a language, by text."""
    content = (CATALOGUES / language / "LC_MESSAGES" / "ftkit.po").read_text(encoding="utf-8")
    pairs = ((_unquoted(entry["id"]), _unquoted(entry["str"])) for entry in ENTRY.finditer(content))
    return {text: there for text, there in pairs if text}


def said(text: str) -> str:
    """A text that is to be printed, in the language that is spoken; as it is where it has no translation."""
    if not _turned or len(text) > LONGEST:
        return text
    parts = re.fullmatch(r"([\s;,]*)(.*?)(\s*)", text, re.DOTALL)
    assert parts is not None, "it fits any text"
    start, body, end = parts.groups()
    turned = _listed(body, "; ") or ("; " not in body and _listed(body, ", ")) or _turn(body)
    if turned is None:
        turned = _between["; "].join(map(said, body.split("; "))) if "; " in body else body
    return start + turned + end


def _listed(text: str, sign: str) -> str | None:
    """A text with a sign between parts, each of which is turned; None if one of them cannot be."""
    parts = [_turn(part) for part in text.split(sign) if " " in part]  # a word may be a name
    whole = [part for part in parts if part is not None]
    return _between[sign].join(whole) if len(whole) == text.count(sign) + 1 > 1 else None


def _turn(text: str) -> str | None:
    """A text by the first translation that fits; None if none does."""
    for pattern, there in _turned:
        if found := pattern.fullmatch(text):
            parts = [said(part) if " " in part else part for part in found.groups()]
            return "".join(parts[int(text)] if i % 2 else text for i, text in enumerate(FILLED_IN.split(there)))
    return None


def _unquoted(strings: str) -> str:
    return "".join(json.loads(line) for line in strings.splitlines())


def _letters(text: str) -> int:
    return len(FILLED_IN.sub("", text))


def _pattern(text: str) -> re.Pattern[str]:
    filled = r"(\S*?)" if _letters(text) < SHORT and "  " not in text else "(.*?)"
    literal = [re.escape(part) for part in FILLED_IN.split(text)[::2]]
    return re.compile(filled.join(literal))
