"""What the HTML pages have in common: how they are rendered, and the beginning of their style."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ftkit import __version__
from ftkit.files import size_in_words, written_aside

INDEX = "index.html"
"""The start page, in the folder of all runs."""
HOME = f"../../{INDEX}"
"""Its address from a page of a run's stage."""
KANA, HAN = re.compile("[\u3041-\u30ff]"), re.compile("[\u4e00-\u9fff]")
LONG_WITHOUT_KANA = 20
"""So many ideographs without a kana are Chinese rather than Japanese."""


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Render a template to a self-contained page.

    Args:
        path: of the page.
        package: folder of ftkit that the template lies in. It extends ``page.html.jinja`` of this one.
        template: its file name.
        values: what it is told, besides ``version``; ``home`` is the address of the start page.
    """
    text = rendered(package, template, escape=True, **values)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def rendered(package: str, template: str, *, escape: bool, **values: Any) -> str:
    """A template's text; ``escape`` is for HTML, and the rest as in ``write_page``."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("ftkit", package), PackageLoader("ftkit", "html")]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "value": shown_value,
        "duration": duration,
        "percent": percent,
        "measured": measured,
        "number": "{:,}".format,
        "size": size_in_words,
        "language": language,
    }
    return environment.get_template(template).render(version=__version__, **values)


def language(text: str | None) -> Any:
    """The attribute that tells a browser that an element's text is Japanese or Chinese; nothing for other texts.

    Without it the glyphs of the reader's own system are taken, Chinese ones for Japanese text in places.
    """
    from markupsafe import Markup

    if not text or not (KANA.search(text) or HAN.search(text)):
        return Markup("")
    chinese = not KANA.search(text) and len(HAN.findall(text)) >= LONG_WITHOUT_KANA
    return Markup(f' lang="{"zh" if chinese else "ja"}"')


def percent(share: float) -> str:
    """A share from 0 to 1 in words for people: never 0 % or 100 % when it is not quite that."""
    for digits in (0, 1, 2):
        shown = f"{100 * share:.{digits}f}"
        if share in (0, 1) or float(shown) not in (0, 100):
            return f"{shown} %"
    return "< 0.01 %" if share < 0.5 else "> 99.99 %"


def measured(figure: float, sign: str = "") -> str:
    """A figure of a metric, ``0.513``; in powers of ten where it is huge, as some perplexities are."""
    return f"{figure:{sign}.3f}" if abs(figure) < 100_000 else f"{figure:{sign}.3g}"


def shown_value(value: Any) -> str:
    """A configuration value as one types it, shortened."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown_value, value))}]"
    return str(value)


def duration(hours: float | None) -> str:
    """Hours in the unit that suits them."""
    if hours is None:
        return "–"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours >= 1 / 20 else f"{hours * 3600:.0f} s"
