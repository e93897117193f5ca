"""What people type in place of ``key=value``: full-width signs, blanks around ``=``, stages and files by themselves."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ftkit.config.option_files import groups, options
from ftkit.errors import Problem, nearest

ON_THE_COMMAND_LINE = "on the command line"
DASHES = "–—−―ー"
FULL_WIDTH = re.compile(r"[\u3000\uff01-\uff5e]")
"""Forms of ASCII signs as wide as a Japanese letter, and the blank of that width."""


def joined(arguments: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Arguments without those that blanks around ``=``, or full-width signs, have broken; a problem for each of these.

    A blank after the comma of a list of stages is taken as it is meant.
    """
    kept: list[str] = []
    problems: list[Problem] = []
    rest = [argument for argument in arguments if argument.strip()]
    while rest:
        word = rest.pop(0)
        if word.startswith("stage=") and word.endswith(","):
            while rest and word.endswith(",") and "=" not in rest[0]:
                word += rest.pop(0)
            kept.append(word.rstrip(","))
        elif rest and rest[0].startswith("=") and "=" not in word:
            value = rest.pop(0)[1:] or (rest.pop(0) if rest else "")
            problems.append(_said(word, "blanks around =", f"{word}={value}"))
        elif word.endswith("=") and rest and "=" not in rest[0] and word.count("=") == 1:
            problems.append(_said(word[:-1], "a blank after =", f"{word}{rest.pop(0)}"))
        elif problem := _full_width(word):
            problems.append(problem)
        else:
            kept.append(word)
    return kept, problems


def no_assignment(word: str, stages: Sequence[str]) -> Problem:
    """The problem of an argument without ``=``."""
    path = Path(word)
    named = f"{path.parent.name}={path.stem}"
    if word[0] in DASHES:
        plain = word.lstrip(DASHES)
        return _said(word, "begins with a dash that is no hyphen", f"{'-' if len(plain) == 1 else '--'}{plain}")
    if path.suffix in (".yaml", ".yml"):
        found = path.stem in options(path.parent.name) if path.parent.name in groups() else False
        return _said(word, "a file, where key=value should stand", named if found else "experiment=<its name>")
    if word in groups():
        return _said(word, "not of the form key=value", f"{word}={options(word)[0]}, for instance")
    if owner := next((group for group in ("experiment", *groups()) if word in options(group)), None):
        return _said(word, "not of the form key=value", f"did you mean {owner}={word}?")
    if close := nearest(word, stages):
        return _said(word, "not of the form key=value", f"did you mean stage={close}?")
    close = nearest(word, groups())
    return _said(word, "not of the form key=value", f"did you mean {close}=…?" if close else "stage=plan, for instance")


def _full_width(word: str) -> Problem | None:
    """Full-width letters, digits and signs where none can be meant: in keys, options, stages and numbers."""
    equals = re.search("[=＝]", word)
    key, value = (word[: equals.start()], word[equals.end() :]) if equals else (word, "")
    sign = equals[0] if equals else ""
    names = _plain(key).strip().lstrip("+")
    is_name = names in groups() or names == "stage" or "." not in names
    wrong = set(FULL_WIDTH.findall(key + sign))
    if is_name or _is_number(_plain(value)):
        wrong |= set(FULL_WIDTH.findall(value))
    wrong |= {c for c in value if c == "\u3000" and re.search("\u3000[a-z]+[=＝]", value)}
    if not wrong or (not equals and not key.isascii() and not any(c.isascii() or c in wrong for c in key)):
        return None
    right = " ".join(_plain(f"{key}={value}" if equals else key).split())
    shown = " ".join("a full-width blank" if c == "\u3000" else c for c in sorted(wrong))
    return _said(names or word, f"full-width: {shown}", right)


def _plain(text: str) -> str:
    return FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text.strip()))


def _said(key: str, what: str, cure: str) -> Problem:
    return Problem(key, what, ON_THE_COMMAND_LINE, cure)
